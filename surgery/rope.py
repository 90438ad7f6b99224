"""Rotary position embedding as exporters write it: the rotation of halves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.contract import Matcher


@dataclass(frozen=True)
class Rotation:
    """`x * cos + concat(-x2, x1) * sin`, x1 and x2 the halves of the last axis of x."""

    x: ir.Value
    cos: ir.Value
    """Broadcasts against x, a head axis of 1 included."""
    sin: ir.Value
    end: ir.Value
    width: int
    """Size of the last axis of x."""


def rotation(node: ir.Node, m: Matcher) -> Rotation:
    """Match the `Concat` of the halves, the anchor, up to x and down to the sum."""
    m.check(len(node.inputs) == 2, "two halves", len(node.inputs))
    negated = m.producer(node.inputs[0], "Neg")
    second = m.producer(negated.inputs[0], "Slice", "Split")
    first = m.producer(node.inputs[1], "Slice", "Split")
    x = first.inputs[0]
    assert x is not None
    m.check(second.inputs[0] is x, "halves of one value", "halves of two values")
    width = x.shape[-1] if x.shape is not None else None
    m.check(isinstance(width, int), "a known last axis", x.shape)
    assert isinstance(width, int)
    last = (-1, len(x.shape or ()) - 1)
    axis = node.attributes["axis"].as_int()
    m.check(axis in last, "halves joined along the last axis", axis)
    if first.op_type == "Slice":
        lower, upper = sliced(first, m), sliced(second, m)
        m.check(lower[2] in last and upper[2] in last, "slices of the last axis", lower[2])
        m.check(lower[:2] == (0, width // 2), f"a first half of {width // 2}", lower[:2])
        m.check(upper[0] == width // 2 and upper[1] >= width, "the second half", upper[:2])
    else:
        m.check(first is second, "one Split", "two")
        m.check(node.inputs[1] is first.outputs[0], "the first half second", "another order")
        m.check(first.attributes.get_int("axis", 0) in last, "a Split of the last axis", "another")
        parts = [v.shape[-1] if v.shape is not None else None for v in first.outputs]
        m.check(parts == [width // 2] * 2, f"halves of {width // 2}", parts)

    turned = m.user(node.outputs[0], "Mul")
    sin = other(turned, node.outputs[0])
    total = m.user(turned.outputs[0], "Add")
    straight = m.producer(other(total, turned.outputs[0]), "Mul")
    m.check(x in straight.inputs, "x * cos beside it", "another product")
    cos = other(straight, x)
    return Rotation(x, cos, sin, total.outputs[0], width)


def sliced(node: ir.Node, m: Matcher) -> tuple[int, int, int]:
    """Start, end and axis of a slice without steps along one axis."""
    starts, ends, axes = (
        m.constant(value, "a constant slice").ravel().tolist() for value in node.inputs[1:4]
    )
    m.check(len(axes) == 1, "a slice of one axis", axes)
    steps = m.constant(node.inputs[4], "constant steps") if len(node.inputs) > 4 else None
    m.check(steps is None or bool((steps == 1).all()), "steps of 1", steps)
    return starts[0], ends[0], axes[0]


def other(node: ir.Node, value: ir.Value) -> ir.Value:
    """The other operand of a node with two."""
    a, b = node.inputs[:2]
    found = b if a is value else a
    assert found is not None
    return found


def unsqueezed(value: ir.Value, m: Matcher) -> ir.Value:
    """The value before the `Unsqueeze` that made room for the heads."""
    node = m.producer(value, "Unsqueeze")
    source = node.inputs[0]
    assert source is not None
    m.rank(value, 3, 4)
    axis = m.constant(node.inputs[1]).ravel().tolist()
    m.check(axis in ([1], [1 - len(value.shape or ())]), "room for the heads on axis 1", axis)
    return source


def halves_equal(table: np.ndarray) -> bool:
    """Whether the last axis holds the same numbers twice."""
    half = table.shape[-1] // 2
    return bool(np.array_equal(table[..., :half], table[..., half:]))
