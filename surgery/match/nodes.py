"""Questions about single nodes that passes of every subject ask."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.matcher import Matcher


def made_by(value: ir.Value, op: str) -> bool:
    """Whether a node of type `op` computes a value."""
    node = value.producer()
    return node is not None and node.op_type == op


def other_operand(node: ir.Node, value: ir.Value) -> ir.Value:
    """The operand of a binary node that is not `value`."""
    a, b = node.inputs[:2]
    found = b if a is value else a
    assert found is not None
    return found


def slice_bounds(node: ir.Node, m: Matcher, step: int = 1) -> tuple[int, int, int]:
    """Start, end and axis of a `Slice` with constant bounds along one axis, in steps of `step`."""
    m.check(len(node.inputs) > 3, "a slice with axes", len(node.inputs))
    starts, ends, axes = (
        m.constant(value, "a constant slice").ravel().tolist() for value in node.inputs[1:4]
    )
    m.check(len(axes) == 1, "a slice of one axis", axes)
    steps = m.constant(node.inputs[4], "constant steps") if len(node.inputs) > 4 else None
    fits = (step == 1) if steps is None else bool((steps == step).all())
    m.check(fits, f"steps of {step}", steps)
    return starts[0], ends[0], axes[0]
