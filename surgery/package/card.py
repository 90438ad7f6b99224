"""The README of a package: its source, its files and how to run it."""

from __future__ import annotations

from surgery.base.plugins import PLUGINS
from surgery.calibrate.plan import Plan
from surgery.engine.facts import Facts
from surgery.package.external_data import Layout
from surgery.package.hub import metadata
from surgery.rewrite.two_forms import LENGTH

TEMPLATE = """\
# {title}

{source} for [onnxruntime-genai](https://github.com/microsoft/onnxruntime-genai) 0.18 or newer,
execution provider `{provider}`: {precision}, decoder in {text}.
{carried}M-RoPE is exact, pictures of any size and number.

```python
import json

import onnxruntime_genai as og

{register}model = og.Model("{folder}")
tokenizer, processor = og.Tokenizer(model), model.create_multimodal_processor()
message = {{"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>What is this?"}}
prompt = tokenizer.apply_chat_template(json.dumps([message]), add_generation_prompt=True)
inputs = processor(prompt, images=og.Images.open("picture.png"))
generator = og.Generator(model, og.GeneratorParams(model))
generator.set_inputs(inputs)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

| file | bytes |
|---|---|
{files}

{quantization}
"""

REGISTER = """\
import {module} as plugin

og.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
"""
"""What a program does first for a provider that is a plugin."""


def model_card(facts: Facts, layout: Layout) -> str:
    """Return the README of a package."""
    options = facts.options
    sizes = "\n".join(f"| `{name}` | {size:,} |" for name, size in sorted(layout.sizes.items()))
    source = origin(facts)
    plugin = PLUGINS.get(options.execution_provider)
    return metadata(facts, source) + TEMPLATE.format(
        title=f"{source}, ONNX, {options.execution_provider}, {options.text_precision}",
        source=f"`{source}`",
        provider=options.execution_provider,
        precision=precision(facts),
        text=options.text_precision,
        folder=".",
        register=REGISTER.format(module=plugin.module) if plugin else "",
        carried="DeepStack is carried, " if facts.levels else "",
        files=sizes,
        quantization=quantization(facts),
    )


def precision(facts: Facts) -> str:
    """What the vision and the embedding graph are in."""
    if facts.quantized_tower:
        return "vision in int8, embedding in fp32"
    return f"vision and embedding in {facts.options.vision_precision}"


def tower(plan: Plan, count: int) -> str:
    """How the `count` linear weights of the vision tower are quantized, in two sentences."""
    left = count - len(plan.rows)
    text = (
        f"Linear weights of the vision tower: {plan.bits:.2f} bits each, scales included, rounded "
        f"to nearest"
    )
    text += f"; {left} of {count} matrices stay in float." if left else "."
    return f"{text} Its patch embedding, position table, norms and biases are not quantized."


def layers(plan: Plan) -> str:
    """How the weights of the layers are quantized, in two sentences."""
    eight = [row.name for row in plan.rows if row.bits == 8]
    kept = [row.name for row in plan.rows if row.bits is None]
    how = (
        "codes that compensate each other's error on tokens that the model itself sampled (GPTQ)"
        if plan.measured
        else "rounded to nearest"
    )
    text = (
        f"Weights of the decoder layers: {plan.bits:.2f} bits each, scales and zero points "
        f"included, {how}; {len(eight)} of {len(plan.rows)} matrices have 8 bits"
    )
    text += f", {len(kept)} stay in float." if kept else "."
    if plan.measured:
        text += (
            f" Estimated to move the next token by {plan.loss:.1e} nats (KL divergence from the "
            f"float model), if the losses of weights add up."
        )
    return f"{text} `quantization.json` lists every matrix."


def origin(facts: Facts) -> str:
    """What a checkpoint is called in public: its hub id, or its folder's name without the path."""
    source = str(facts.manifest["source"])
    cached = f"models--{source.replace('/', '--')}"  # a hub id's folder in the hub's cache
    known = source == "demo" or cached in facts.checkpoint.parts
    return source if known else facts.checkpoint.name


def quantization(facts: Facts) -> str:
    """Return sentences on how the graphs are quantized."""
    told = [decoder(facts)]
    if facts.tower is not None:
        told.append(tower(facts.tower, facts.tower_weights))
    return " ".join(told)


def decoder(facts: Facts) -> str:
    """Return a sentence on how the decoder is quantized."""
    if not facts.quantized:
        return f"Weights of the decoder as in the checkpoint, in {facts.options.text_precision}."
    head = f"{facts.options.head_bits} bits in blocks of {facts.head_block}"
    result = f"The head has {head}."
    if facts.shortlisted:
        result += (
            f" A copy of it in 4 bits chooses {facts.options.shortlist} tokens; their logits come "
            f"from 8 bits, those of the others from 4."
        )
    if facts.plan is not None:
        result = f"{layers(facts.plan)} {result}"
    if facts.options.own_prefill:
        result += (
            f" Inputs of {LENGTH} tokens or more, which prompts are, read a second copy of the "
            f"layers' weights, in 8 bits with a scale for each row."
        )
    if facts.experts and not facts.quantized_experts:
        result += f" Experts: {facts.text_dtype.itemsize * 8} bits."
    return result
