"""Attention as exporters write it out: masks, caps and factors of scores, keys and their heads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.nodes import other_operand
from surgery.rewrite.matcher import Matcher, constant

LOWEST = -1e4
"""A mask number at or below this counts as hiding the key."""


def masked(scores: ir.Value, m: Matcher) -> tuple[ir.Value | None, ir.Value]:
    """The mask that is added to the scores, None without, and the scores before it.

    For Where(condition, 0, lowest) the mask is the condition.
    """
    node = m.producer(scores, "Add", "Mul", "Div", "MatMul")
    if node.op_type != "Add":
        return None, scores
    a, b = node.inputs
    assert a is not None and b is not None
    made = a.producer()
    mask, before = (b, a) if made and made.op_type in ("Mul", "Div", "MatMul") else (a, b)
    choice = mask.producer()
    if choice is not None and choice.op_type == "Where":
        shown, hidden = constant(choice.inputs[1]), constant(choice.inputs[2])
        plain = shown is not None and hidden is not None and not shown.any()
        if plain and hidden is not None and bool(np.all(hidden <= LOWEST)):
            assert choice.inputs[0] is not None
            return choice.inputs[0], before
    return mask, before


def capped(scores: ir.Value, m: Matcher) -> tuple[float, ir.Value]:
    """The cap c of c * Tanh(scores / c), 0 without, and the scores before it."""
    node = scores.producer()
    if node is None or node.op_type != "Mul":
        return 0.0, scores
    for value in node.inputs:
        bent = value.producer() if value is not None else None
        if value is None or bent is None or bent.op_type != "Tanh":
            continue
        cap = m.constant(other_operand(node, value), "a constant cap")
        inner = m.producer(bent.inputs[0], "Div")
        by = m.constant(inner.inputs[1], "a constant cap")
        m.check(cap.size == 1 and by.size == 1 and cap.item() == by.item(), "one cap", (cap, by))
        assert inner.inputs[0] is not None
        return float(cap.item()), inner.inputs[0]
    return 0.0, scores


def scaled(scores: ir.Value, m: Matcher) -> tuple[float, ir.Node]:
    """The constant factor of the scores, and the product of queries and keys."""
    factor, value = factored(scores)
    return factor, m.producer(value, "MatMul")


def factored(value: ir.Value | None) -> tuple[float, ir.Value]:
    """The constant factor of a value, 1 without, and the value before it."""
    assert value is not None
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return 1.0, value
    for one, two in (node.inputs[:2], node.inputs[1::-1]):
        numbers = constant(two)
        if one is not None and numbers is not None and numbers.size == 1:
            if node.op_type == "Mul":
                return float(numbers.item()), one
            if two is node.inputs[1]:
                return 1 / float(numbers.item()), one
    return 1.0, value


def keys(turned: ir.Value, m: Matcher) -> tuple[ir.Value, bool]:
    """Keys before their Transpose to `[B, N, D, T]`, and whether it moved the heads too."""
    node = m.producer(turned, "Transpose")
    perm = list(node.attributes.get_ints("perm", ()))
    m.check(perm in ([0, 1, 3, 2], [0, 2, 3, 1]), "keys turned for the product", perm)
    assert node.inputs[0] is not None
    return node.inputs[0], perm == [0, 2, 3, 1]


def repeated(value: ir.Value) -> ir.Value:
    """Keys or values before each head was repeated, or the value itself."""
    flat = value.producer()
    spread = flat.inputs[0].producer() if flat and flat.op_type == "Reshape" else None  # type: ignore[union-attr]
    lifted = spread.inputs[0].producer() if spread and spread.op_type == "Expand" else None  # type: ignore[union-attr]
    if lifted is None or lifted.op_type != "Unsqueeze" or lifted.inputs[0] is None:
        return value
    axis, source = constant(lifted.inputs[1]), lifted.inputs[0]
    before, after = source.shape, value.shape
    if axis is None or axis.ravel().tolist() != [2] or before is None or after is None:
        return value
    same = len(before) == len(after) == 4 and all(before[i] == after[i] for i in (0, 2, 3))
    return source if same else value
