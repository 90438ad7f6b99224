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
    node = m.producer(scores, "Add", "Mul", "Div", "MatMul", "Where")
    if node.op_type == "Where":
        hidden = constant(node.inputs[2])
        lowest = hidden is not None and bool(np.all(hidden <= LOWEST))
        m.check(lowest, "scores where the mask is true, else a lowest number", node.inputs[2])
        condition, before = node.inputs[:2]
        assert condition is not None and before is not None
        return condition, before
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


def keys(turned: ir.Value, m: Matcher) -> tuple[ir.Value, tuple[int, ...]]:
    """Keys before they were turned to `[B, N, D, T]`, and the order of axes that is left to do.

    Keys that no Transpose turns directly are turned back: `attention_heads` finds their rows.
    """
    m.rank(turned, 4)
    node = turned.producer()
    if node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        perm = list(node.attributes.get_ints("perm", ()))
        if perm == [0, 1, 3, 2]:
            return node.inputs[0], ()
        if perm == [0, 2, 3, 1]:
            return node.inputs[0], (0, 2, 1, 3)
    return turned, (0, 1, 3, 2)


def guarded(weights: ir.Value, m: Matcher) -> ir.Value:
    """The attention weights after the guard that turns rows of NaN into zeros, if there is one."""
    users = weights.consumers()
    if sorted(user.op_type for user in users) != ["IsNaN", "Where"]:
        return weights
    asked, chosen = sorted(users, key=lambda user: user.op_type)
    zero = constant(chosen.inputs[1])
    whole = chosen.inputs[0] is asked.outputs[0] and chosen.inputs[2] is weights
    m.check(whole and zero is not None and not zero.any(), "zeros where the weights are NaN", zero)
    m.check(len(asked.outputs[0].uses()) == 1, "a guard that nothing else reads", "other readers")
    return chosen.outputs[0]


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
