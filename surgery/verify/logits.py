"""The package computes what PyTorch computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

import quant
from surgery.answer.pytorch import PyTorch
from surgery.answer.runtime import Runtime
from surgery.base.errors import PackageError
from surgery.verify.finding import Finding, close
from surgery.verify.opened import INT4, Opened
from surgery.verify.runtime import QUESTION, open_runtime, sample

STEPS = 8

PACKED = {
    "MatMulNBits": ((1, 2, 3),),
    "GatherBlockQuantized": ((0, 2, 3),),
    "QMoE": ((2, 3, 11), (5, 6, 12)),
}
"""Where ops keep codes, scales and zero points of each weight."""
BITS = {"QMoE": "expert_weight_bits"}
"""The attribute with the bits of a code, where it is not `bits`."""
GATED = 2
"""Where `QMoE` keeps the codes of the weight that has rows of gates and ups in turn."""
TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
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
    with PyTorch.running(checkpoint, cache_dir, revision) as pytorch:
        if package.precision == INT4:
            pytorch.replace(unpacked(package))
        for count in (0, 1, 2):
            yield compare(package, runtime, pytorch, count)


def compare(package: Opened, runtime: Runtime, pytorch: PyTorch, count: int) -> Finding:
    """Both on one question about `count` pictures."""
    what = f"logits, {count} pictures"
    pictures = [runtime.sizing.apply(picture) for picture in sample(runtime.sizing, count)]
    asked = pytorch.prompt(QUESTION, pictures)
    prompt = runtime.prompt(runtime.ask(QUESTION, count), pictures)
    if not np.array_equal(asked.ids, prompt.ids):
        problem = f"prompt of {prompt.length} tokens, PyTorch has {len(asked.ids)} others"
        return Finding(what, problem=problem)
    answer = pytorch.generate(asked, STEPS, stop=False)
    logits = runtime.follow(prompt, answer.tokens)
    if logits.shape != answer.logits.shape:
        problem = f"{logits.shape[1]} logits, PyTorch has {answer.logits.shape[1]}"
        return Finding(what, problem=problem)
    steps = abs(logits - answer.logits).max(axis=-1)
    difference = float(np.median(steps) if may_choose_otherwise(package) else steps.max())
    scale = float(abs(answer.logits).max())
    return close(what, difference, scale, TOLERANCE[package.precision])


def may_choose_otherwise(package: Opened) -> bool:
    """Whether rounding may choose other experts, where two are nearly as good.

    The logits of such a step differ by as much as the experts do; those of most steps do not.
    """
    ops = {node.op_type for node in package.graphs["decoder"].graph}
    return package.precision != "fp32" and not ops.isdisjoint(("MoE", "QMoE", "TopK"))


def unpacked(package: Opened) -> Iterator[tuple[str, np.ndarray]]:
    """Each quantized weight: its name to PyTorch, and the float32 matrix that it stands for."""
    for part in ("embedding", "decoder"):
        for node in package.graphs[part].graph:
            for places in PACKED.get(node.op_type, ()):
                name, weight = unpack(node, places)
                # a tied head goes by the name of the table, which may be quantized another way
                yield (HEAD if part == "decoder" and name == TABLE else name), weight


def unpack(node: ir.Node, places: Sequence[int]) -> tuple[str, np.ndarray]:
    """The name of a quantized weight of a node, and the float32 numbers that it stands for."""
    first, *rest = (node.inputs[i] for i in places if i < len(node.inputs))
    assert first is not None and first.name is not None
    packed, scales, zero_points = (*(numbers(value) for value in (first, *rest)), None)[:3]
    assert packed is not None and scales is not None
    bits = node.attributes[BITS.get(node.op_type, "bits")].as_int()
    block = node.attributes["block_size"].as_int()
    form = quant.BlockFormat(bits, block, symmetric=zero_points is None)
    rows = scales.shape[:-1]
    codes = packed.reshape(math.prod(rows), -1, form.block_bytes)
    zeros = None if zero_points is None else zero_points.reshape(len(codes), -1)
    k = node.attributes["K"].as_int() if "K" in node.attributes else codes.shape[1] * block
    blocks = quant.Blocks(codes, scales.reshape(len(codes), -1), zeros, form, k)
    weight = quant.dequantize(blocks).reshape(*rows, k)
    if node.op_type == "QMoE" and places[0] == GATED:
        weight = np.concatenate([weight[:, 0::2], weight[:, 1::2]], axis=1)
    return first.name.removesuffix(".packed"), weight


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of an initializer."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else tensor.numpy()
