"""Biases that are added to rows."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.matcher import Matcher


def biased(value: ir.Value | None, m: Matcher) -> tuple[ir.Value, ir.Value]:
    """Rows `[..., H]` and the stored bias `[H]` whose sum `value` is; only one node reads it."""
    found = bias_of(value)
    made = value.producer().op_type if value is not None and value.producer() else "no node"  # type: ignore[union-attr]
    m.check(found is not None, "rows and a stored bias that nothing else reads", made)
    assert found is not None
    return found


def bias_of(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The same, or None where it is no such sum."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Add" or node.domain:
        return None
    if len(value.uses()) != 1 or value.is_graph_output() or value.shape is None:
        return None
    for rows, bias in (node.inputs, node.inputs[::-1]):
        if rows is None or bias is None or bias.shape is None or rows.shape is None:
            continue
        fits = bias.is_initializer() and list(bias.shape) == [value.shape[-1]]
        if fits and len(rows.shape) == len(value.shape) > 1 and bias.dtype == ir.DataType.FLOAT:
            return rows, bias
    return None
