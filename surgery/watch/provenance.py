"""Describe weights: where their data is stored, and what is computed from it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from surgery.rewrite.matcher import constant
from surgery.rewrite.view import INLINE, kind
from surgery.rewrite.weights import RowTensor, Stored


def lines(model: ir.Model) -> Iterator[str]:
    """Yield a line for each weight: dtype, shape, and how it is computed.

    Small constants are left out, because the text of the nodes that read them shows their values.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            numbers = constant(value)
            if numbers is not None and numbers.size <= INLINE:
                continue
            yield f"weight {value.name} {kind(value)} = {origin(value.const_value)}"


def origin(tensor: ir.TensorProtocol | None) -> str:
    """Return where the data of a tensor comes from."""
    if isinstance(tensor, RowTensor):
        part = f", part {tensor.part}" if len(tensor.source.parts) > 1 else ""
        return describe(tensor.source) + part
    if isinstance(tensor, ir.ExternalTensor):
        return f"{Path(tensor.location).name}+{tensor.offset or 0}"
    return "stored in the graph"


def describe(source: object) -> str:
    """Return a chain of sources as an expression: `cast(transposed(file+offset), fp16)`."""
    if isinstance(source, Stored):
        return f"{source.file.name}+{source.offset}"
    if isinstance(source, ir.DataType):
        return source.short_name()
    if isinstance(source, tuple):
        return f"({', '.join(describe(item) for item in source)})"
    if dataclasses.is_dataclass(source) and hasattr(source, "parts"):
        fields = (getattr(source, field.name) for field in dataclasses.fields(source))
        return f"{type(source).__name__.lower()}({', '.join(map(describe, fields))})"
    return str(source)


def bytes_by_dtype(model: ir.Model) -> dict[str, int]:
    """Return the bytes of the initializers by dtype, largest first."""
    found: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                found[value.const_value.dtype.short_name()] += value.const_value.nbytes
    return dict(found.most_common())
