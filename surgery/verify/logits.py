"""The package computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

import quant
from surgery.errors import PackageError
from surgery.verify.finding import Finding, close
from surgery.verify.opened import INT4, Opened
from surgery.verify.runtime import QUESTION, open_runtime, sample

STEPS = 8
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "int4": 5e-2}
"""Of the largest logit. An int4 package is held to PyTorch with the unpacked weights; what is left
is the rounding of activations to int8 (accuracy level 4)."""


def check_logits(
    package: Opened, checkpoint: str | Path, cache_dir: str | None, revision: str | None
) -> Iterator[Finding]:
    """Prompts token by token, logits along PyTorch's own answer.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    try:
        runtime = open_runtime(package)
    except PackageError as e:
        yield Finding("logits", f"made for {package.provider}, not run: {e}")
        return
    from export_min import open_checkpoint  # torch, asked only here
    from export_min.reference import Reference

    reference = Reference(open_checkpoint(checkpoint, cache_dir, revision))
    if package.precision == INT4:
        reference.replace(unpacked(package.graphs["decoder"]))
    for count in (0, 1, 2):
        what = f"logits, {count} pictures"
        pictures = sample(runtime.sizing, count)
        inputs = reference.inputs(
            reference.chat(QUESTION, count), [runtime.sizing.apply(p) for p in pictures]
        )
        prompt = runtime.prompt(runtime.ask(QUESTION, count), pictures)
        wanted = inputs["input_ids"].numpy().reshape(-1)
        if not np.array_equal(wanted, prompt.ids):
            yield Finding(
                what, problem=f"prompt of {prompt.length} tokens, PyTorch has {len(wanted)} others"
            )
            continue
        answer = reference.generate(inputs, STEPS, stop=False)
        logits = runtime.follow(prompt, answer.tokens)
        if logits.shape != answer.logits.shape:
            yield Finding(
                what, problem=f"{logits.shape[1]} logits, PyTorch has {answer.logits.shape[1]}"
            )
            continue
        difference = float(abs(logits - answer.logits).max())
        scale = float(abs(answer.logits).max())
        yield close(what, difference, scale, TOLERANCE[package.precision])


def unpacked(model: ir.Model) -> Iterator[tuple[str, np.ndarray]]:
    """Each quantized weight of a graph: its name, and the float32 matrix that it stands for."""
    for node in model.graph:
        if node.op_type != "MatMulNBits":
            continue
        arrays = [v.const_value.numpy() if v and v.const_value else None for v in node.inputs[1:4]]
        packed, scales, zero_points = (*arrays, None)[:3]
        assert packed is not None and scales is not None
        attributes = {name: node.attributes[name].as_int() for name in ("bits", "block_size", "K")}
        form = quant.BlockFormat(
            attributes["bits"], attributes["block_size"], symmetric=zero_points is None
        )
        blocks = quant.Blocks(packed, scales, zero_points, form, attributes["K"])
        value = node.inputs[1]
        assert value is not None and value.name is not None
        yield value.name.removesuffix(".packed"), quant.dequantize(blocks)
