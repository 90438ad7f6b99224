"""Quantized weights of a package, each held to the weight of the checkpoint that it stands for.

Rounding to the nearest of the values that a block's scale allows moves a weight by half a step at
most, and by a whole step where the range of codes ends. So a scale, a code or a whole matrix that
is not this checkpoint's shows in the matrix itself, where logits could hide it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import quant
from quant.blocks import unpack as unpack_codes
from surgery.answer.trusted import PARTS
from surgery.rewrite.float_activations import INTEGER
from surgery.rewrite.shortlists import DRAFT
from surgery.rewrite.two_forms import LONG
from surgery.rewrite.weights import numbers
from surgery.verify.finding import Finding
from surgery.verify.opened import Opened

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
COMPENSATED = 2.5
"""How many times the error of rounding a calibrated matrix may have; 1.7 at most on SmolLM2."""
LENGTHS = 0.4, 1.5
"""A calibrated block's length along the checkpoint's, least and most; 0.6 to 1.1 on SmolLM2."""
FAINT = 0.1
"""Blocks with less than this share of the length of their row's longest are not judged alone."""
SLACK = 1.01
"""Above half a step: float32 sums, and scales rounded to float16."""
PIECE = 1 << 22
"""Weights compared at a time."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Unpacked:
    """A quantized weight.

    Attributes:
        name: its name to PyTorch.
        blocks: its codes and scales; a stack of matrices is one matrix of all their rows.
        stack: dimensions of the weight in front of its columns.
        gated: whether rows of gates and ups stand in turn, which PyTorch has one after the other.
        long: whether only long inputs are multiplied by it, and others by another form of it.
        draft: whether it only chooses the tokens that another form of it computes logits for.
    """

    name: str
    blocks: quant.Blocks
    stack: tuple[int, ...]
    gated: bool
    long: bool = False
    draft: bool = False

    def weight(self) -> Matrix:
        """The float32 numbers that it stands for, as PyTorch has them."""
        weight = quant.dequantize(self.blocks).reshape(*self.stack, self.blocks.k)
        if self.gated:
            weight = np.concatenate([weight[:, 0::2], weight[:, 1::2]], axis=1)
        return weight

    def arranged(self, weight: Matrix) -> Matrix:
        """A weight of PyTorch's as the matrix whose rows are those of the blocks."""
        if self.gated:
            e, n, k = weight.shape
            weight = weight.reshape(e, 2, n // 2, k).swapaxes(1, 2)
        return weight.reshape(-1, self.blocks.k)


def every(package: Opened) -> Iterator[Unpacked]:
    """The quantized weights of the three graphs."""
    for part in PARTS:
        for node in (node for graph in package.graphs[part].graphs() for node in graph):
            if node.op_type == INTEGER:
                yield integer(node)
            for places in PACKED.get(node.op_type, ()):
                found = read(node, places)
                # a tied head goes by the name of the table, which may be quantized another way
                head = part == "decoder" and found.name == TABLE
                yield replace(found, name=HEAD) if head else found


def unpacked(package: Opened, long: bool = False) -> Iterator[tuple[str, Matrix]]:
    """Each quantized weight: its name to PyTorch, and the float32 matrix that it stands for.

    Args:
        package: what it is of.
        long: whether, of weights that have a form for long inputs, that form comes last.
    """
    for wanted in (False, True) if long else (False,):
        for found in every(package):
            if found.long == wanted and not found.draft:
                yield found.name, found.weight()


def read(node: ir.Node, places: tuple[int, ...]) -> Unpacked:
    """A quantized weight of a node."""
    first, *rest = (node.inputs[i] for i in places if i < len(node.inputs))
    assert first is not None and first.name is not None
    packed, scales, zero_points = (*(read_numbers(value) for value in (first, *rest)), None)[:3]
    assert packed is not None and scales is not None
    bits = node.attributes[BITS.get(node.op_type, "bits")].as_int()
    block = node.attributes["block_size"].as_int()
    form = quant.BlockFormat(bits, block, symmetric=zero_points is None)
    stack = tuple(scales.shape[:-1])
    codes = packed.reshape(math.prod(stack), -1, form.block_bytes)
    zeros = None if zero_points is None else zero_points.reshape(len(codes), -1)
    k = node.attributes["K"].as_int() if "K" in node.attributes else codes.shape[1] * block
    blocks = quant.Blocks(codes, scales.reshape(len(codes), -1), zeros, form, k)
    gated = node.op_type == "QMoE" and places[0] == GATED
    name = first.name.removesuffix(".packed")
    draft = name.endswith(DRAFT)
    return Unpacked(name.removesuffix(DRAFT), blocks, stack, gated, draft=draft)


def integer(node: ir.Node) -> Unpacked:
    """The weight `[K, N]` of an integer product, with a scale for each of its N columns."""
    codes, scales = (read_numbers(node.inputs[i]) for i in (1, 3))
    weight = node.inputs[1]
    assert codes is not None and scales is not None and weight is not None and weight.name
    blocks = quant.Channels(np.ascontiguousarray(codes.T), scales).blocks()
    name = weight.name.removesuffix(".codes")
    long = name.endswith(LONG)
    return Unpacked(name.removesuffix(LONG), blocks, (blocks.n,), False, long)


def read_numbers(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The numbers of an initializer."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else numbers(tensor)


def compare(found: Unpacked, original: Matrix, compensated: bool = False) -> Finding:
    """Hold a quantized weight to the checkpoint's.

    Codes that a calibration chose compensate each other's errors: single weights may be several
    steps off, while each block still points where the checkpoint's does, and the matrix stays near
    it. Such a block is held to `LENGTHS`, the matrix to `COMPENSATED` times rounding's error in
    the same format.

    Args:
        found: the quantized weight.
        original: the checkpoint's, as PyTorch has it.
        compensated: whether a calibration chose its codes.

    Returns:
        A finding with the relative error of the matrix, and a problem if a weight is further off
        than rounding takes it.
    """
    what = f"weight {found.name}"
    if original.shape != (*found.stack, found.blocks.k):
        stands = [*found.stack, found.blocks.k]
        return Finding(what, problem=f"is {stands}, the checkpoint has {list(original.shape)}")
    rows = found.arranged(original)
    step = max(1, PIECE // found.blocks.k)
    off, worst, error, norm, turned = 0, 0.0, 0.0, 0.0, 0
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step], np.float32)
        blocks = found.blocks.rows(start, start + step)
        restored = quant.dequantize(blocks)
        difference = np.abs(part - restored)
        if compensated:
            turned += misled(part, restored, found.blocks.format.block)
        excess = difference / allowed(blocks)
        off += int(np.count_nonzero(~(excess <= 1)))  # NaN counts
        worst = max(worst, float(excess.max(initial=0)))
        error += float(np.einsum("nk,nk->", difference, difference, dtype=np.float64))
        norm += float(np.einsum("nk,nk->", part, part, dtype=np.float64))
    relative = math.sqrt(error / norm) if norm else math.inf if error else 0.0
    note = f"relative error {relative:.3f}"
    if compensated:
        rounded = quant.weight_error(rows, quant.quantize_parallel(rows, found.blocks.format))
        limit = COMPENSATED * rounded.relative
        fault = "" if relative <= limit else f"{note}, {limit:.3f} allowed for calibrated codes"
        if turned:
            fault = f"{turned:,} blocks are far longer or shorter than the checkpoint's; {note}"
        return Finding(what, note, fault)
    if not off:
        return Finding(what, note)
    return Finding(
        what,
        problem=f"{off:,} of {rows.size:,} weights are further from the checkpoint's than rounding "
        f"takes them, up to {worst:.1f} times; {note}",
    )


def misled(weight: Matrix, restored: Matrix, block: int) -> int:
    """Blocks `[N, K]` whose length along the checkpoint's is outside of `LENGTHS`; NaN counts."""
    n, k = weight.shape
    pad = ((0, 0), (0, -k % block))
    ours, theirs = (np.pad(x, pad).reshape(n, -1, block) for x in (restored, weight))
    along = np.einsum("nbk,nbk->nb", ours, theirs, dtype=np.float64)
    square = np.einsum("nbk,nbk->nb", theirs, theirs, dtype=np.float64)
    judged = square > FAINT**2 * square.max(-1, keepdims=True)
    inside = (along >= LENGTHS[0] * square) & (along <= LENGTHS[1] * square)
    return int(np.count_nonzero(judged & ~inside))


def allowed(blocks: quant.Blocks) -> Matrix:
    """How far rounding may move each weight `[N, K]`: half a step, a whole one at the last codes.

    Blocks whose scale vanishes hold weights too small for it.
    """
    form, n = blocks.format, blocks.n
    codes = unpack_codes(blocks.packed, form.bits, form.block)
    ends = (codes == 0) | (codes == form.max_code)
    scales = np.abs(blocks.scales.astype(np.float32))[..., None]
    smallest = np.float32(2.0**-25 if blocks.scales.dtype == np.float16 else 2.0**-126)
    bound = np.where(ends, scales, scales / 2) * np.float32(SLACK) + 2 * form.middle * smallest
    return np.asarray(bound.reshape(n, -1)[:, : blocks.k], np.float32)
