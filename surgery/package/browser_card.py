"""The README of a package for transformers.js."""

from __future__ import annotations

from surgery.engine.facts import Facts
from surgery.package.card import origin, precision, quantization
from surgery.package.external_data import Layout
from surgery.package.hub import metadata
from surgery.package.page import VERSION
from surgery.package.transformers_js import dtype

TEMPLATE = """\
# {source}, ONNX, transformers.js, {dtype}

`{source}` for [transformers.js](https://github.com/huggingface/transformers.js) 4.3: {precision},
decoder in {text}. {carried}

`index.html` asks it in a browser, about pictures or without: let any web server give out this
folder, or run `python -m surgery demo` on it. In a program:

```js
{script}```

{faults}

| file | bytes |
|---|---|
{files}

{quantization}
"""

SCRIPT = """\
import {
  AutoModelForImageTextToText, AutoProcessor, RawImage, TextStreamer,
} from "@huggingface/transformers";
import { prepare } from "./prepare.mjs"; // a file of this package

const id = "ORGANIZATION/NAME"; // on the hub; in Node also the folder, with its whole path
const processor = await AutoProcessor.from_pretrained(id);
const model = await AutoModelForImageTextToText.from_pretrained(id); // { device: "webgpu" }

const image = await RawImage.read("picture.png");
const content = [{ type: "image", image }, { type: "text", text: "What is in this picture?" }];
const inputs = await prepare(processor, [{ role: "user", content }]);
const options = { skip_prompt: true, skip_special_tokens: true };
const streamer = new TextStreamer(processor.tokenizer, options);
await model.generate({ ...inputs, max_new_tokens: 256, streamer });
"""
"""How to ask about pictures; the tests run `prepare`."""

FAULTS = """\
`prepare` takes the place of `processor(text, images)`, which counts several pictures as frames of
one (models/qwen2_vl/image_processing_qwen2_vl.js:20 of transformers.js {version}) and resizes them
by another method than PyTorch (utils/image.js:409 there). A picture of a later turn that continues
a cache is not seen (models/qwen2_vl/modeling_qwen2_vl.js:314 there): pass the whole conversation
with all its pictures, without `past_key_values`."""


def browser_card(facts: Facts, layout: Layout) -> str:
    """Return the README of a package for transformers.js."""
    sizes = "\n".join(f"| `{name}` | {size:,} |" for name, size in sorted(layout.sizes.items()))
    carried = (
        f"All {facts.levels} DeepStack levels reach the decoder: image features and embeddings "
        f"have {1 + facts.levels} times the hidden size, and the decoder splits them."
    )
    return metadata(facts, origin(facts)) + TEMPLATE.format(
        source=origin(facts),
        dtype=dtype(facts),
        precision=precision(facts),
        text=facts.options.text_precision,
        carried=carried if facts.levels else "",
        script=SCRIPT,
        faults=FAULTS.format(version=VERSION),
        files=sizes,
        quantization=quantization(facts),
    )
