"""The README of a package for transformers.js."""

from __future__ import annotations

from surgery.engine.facts import Facts
from surgery.package.card import origin, precision, quantization
from surgery.package.external_data import Layout
from surgery.package.hub import metadata
from surgery.package.transformers_js import dtype

TEMPLATE = """\
# {source}, ONNX, transformers.js, {dtype}

`{source}` for [transformers.js](https://github.com/huggingface/transformers.js) 4.3: {precision},
decoder in {text}. {carried}

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
  AutoModelForImageTextToText, AutoProcessor, RawImage, TextStreamer, cat,
} from "@huggingface/transformers";

const id = "ORGANIZATION/NAME"; // on the hub; in Node also the folder, with its whole path
const processor = await AutoProcessor.from_pretrained(id);
const model = await AutoModelForImageTextToText.from_pretrained(id); // { device: "webgpu" }

// Pictures one by one, and their marks in the text as often as each has tokens.
async function prepare(question, images = []) {
  const content = [...images.map(() => ({ type: "image" })), { type: "text", text: question }];
  let text = processor.apply_chat_template([{ role: "user", content }], {
    add_generation_prompt: true,
  });
  const parts = [];
  for (const image of images) parts.push(await processor.image_processor(image));
  const square = processor.image_processor.config.merge_size ** 2;
  const patches = parts.map((part) => part.pixel_values.dims[0]);
  text = text.replaceAll("<|image_pad|>", (mark) => mark.repeat(patches.shift() / square));
  const inputs = processor.tokenizer(text, { add_special_tokens: false });
  if (parts.length > 0) {
    inputs.pixel_values = cat(parts.map((part) => part.pixel_values));
    inputs.image_grid_thw = cat(parts.map((part) => part.image_grid_thw));
  }
  return inputs;
}

const image = await RawImage.read("picture.png");
const inputs = await prepare("What is in this picture?", [image]);
const options = { skip_prompt: true, skip_special_tokens: true };
const streamer = new TextStreamer(processor.tokenizer, options);
await model.generate({ ...inputs, max_new_tokens: 256, streamer });
"""
"""How to ask about pictures; the tests run `prepare`."""

FAULTS = """\
`prepare` takes the place of `processor(text, images)`, which counts several pictures as frames of
one (models/qwen2_vl/image_processing_qwen2_vl.js:20 of transformers.js 4.3.1). A picture of a later
turn that continues a cache is not seen (models/qwen2_vl/modeling_qwen2_vl.js:314 there): pass the
whole conversation with all its pictures, without `past_key_values`."""


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
        faults=FAULTS,
        files=sizes,
        quantization=quantization(facts),
    )
