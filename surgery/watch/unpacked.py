"""The reference for a pass that quantizes: the graph before it, with dequantized weights.

`--check-steps` compares the quantized graph with this reference. It checks that INT4 output equals
that of the dequantized weights. The loss of accuracy
by quantization is another question, which `python -m surgery eval --against` answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

import quant
from surgery.package.external_data import weight_name
from surgery.rewrite.copies import copied
from surgery.rewrite.shortlists import DRAFT
from surgery.rewrite.weights import (
    Array,
    Interleaved,
    Quantized,
    RowQuantized,
    RowTensor,
    Shape,
    Source,
    Stored,
    Swapped,
    Transposed,
    source_of,
    transposed,
)

BLOCKS = Quantized, RowQuantized
"""Sources of codes and scales."""


@dataclass(frozen=True)
class Unpacked:
    """A quantized weight, dequantized to float32 in the shape of the original weight."""

    source: Quantized | RowQuantized

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """Dtype and shape of the one array."""
        return ((ir.DataType.FLOAT, self.source.source.parts[0][1]),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Return the dequantized rows from `start` to `stop`."""
        if isinstance(self.source, RowQuantized):
            return (quant.Channels(*self.source.read(start, stop)).weight(),)
        packed, scales, *zeros = (
            part.reshape(-1, *part.shape[-axes:])
            for part, axes in zip(self.source.read(start, stop), (2, 1, 1), strict=False)
        )
        *rows, k = self.source.source.parts[0][1]
        blocks = quant.Blocks(packed, scales, zeros[0] if zeros else None, self.source.format, k)
        return (quant.dequantize(blocks).reshape(stop - start, *rows[1:], k),)


def reference(before: ir.Model, after: ir.Model) -> ir.Model | None:
    """Return `before` with the dequantized form of each weight that the pass quantized.

    None if the pass quantized no weight.
    """
    known, new = quantized(before), quantized(after)
    new = {source: names for source, names in new.items() if source not in known}
    if not new:
        return None
    copy = copied(before)
    values = [value for graph in copy.graphs() for value in graph.initializers.values()]
    present = {value.name for value in values}
    by_name = {name: source for source, names in new.items() for name in names if name in present}
    by_file = {root(source): source for source in new}
    # Of two initializers with the numbers of one stored weight, one may stay in float.
    apart = {root(source) for source in by_name.values()}
    for value in values:
        source, place = source_of(value), root(source_of(value))
        blocks = by_name.get(value.name or "") if place in apart else by_file.get(place)
        if source is not None and place is not None and blocks is not None:
            unpacked = arranged(stored(Unpacked(blocks), blocks.source), source)
            value.const_value = RowTensor(unpacked, name=value.name or "")
            if source.parts[0][0] != ir.DataType.FLOAT:
                widen(value, source.parts[0][0])
    return copy


def widen(value: ir.Value, narrow: ir.DataType) -> None:
    """Set the type of a value to float32, and that of the values computed from it in `narrow`."""
    if value.dtype == narrow:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in value.consumers():
            for out in node.outputs:
                widen(out, narrow)


def quantized(model: ir.Model) -> dict[Quantized | RowQuantized, set[str]]:
    """The quantized weights of a graph, each with the names that its initializers give it."""
    found: dict[Quantized | RowQuantized, set[str]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, RowTensor) and isinstance(tensor.source, BLOCKS):
                name = weight_name(tensor)
                if not name.endswith(DRAFT):  # it chooses tokens, and multiplies none chosen
                    found.setdefault(tensor.source, set()).add(name)
    return found


def root(source: Any) -> Stored | None:
    """Return the stored weight at the end of a chain of sources, or None."""
    while not isinstance(source, Stored):
        source = getattr(source, "source", None)
        if source is None:
            return None
    return source


def stored(numbers: Source, source: Any) -> Source:
    """Return weights that are in the layout of `source` in the layout of the checkpoint."""
    while not isinstance(source, Stored):
        if isinstance(source, Transposed | Swapped):
            numbers = transposed(numbers)
        elif isinstance(source, Interleaved):
            numbers = Interleaved(numbers, not source.back)
        source = source.source
    return numbers


def arranged(numbers: Source, source: Any) -> Source:
    """Return weights that are in the layout of the checkpoint in the layout of `source`."""
    if isinstance(source, Stored):
        return numbers
    numbers = arranged(numbers, source.source)
    if isinstance(source, Transposed | Swapped):
        return transposed(numbers)
    return Interleaved(numbers, source.back) if isinstance(source, Interleaved) else numbers
