"""Whether dimensions and shapes are known to be equal."""

from __future__ import annotations

import onnx_ir as ir

Dim = int | ir.SymbolicDim


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are known to be equal: the same number or the same name."""
    return a == b and (isinstance(a, int) or a.value is not None)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to have the same shape."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same_dim(x, y) for x, y in zip(a.shape, b.shape, strict=True))
