"""Normalizations as exporters write them: means over the last axis, inverse square roots."""

from __future__ import annotations

import onnx_ir as ir

from surgery.match.nodes import other_operand
from surgery.rewrite.matcher import Matcher, constant


def mean(node: ir.Node, m: Matcher) -> ir.Value:
    """The value whose mean over the last axis, kept as an axis of 1, a `ReduceMean` takes."""
    x = node.inputs[0]
    assert x is not None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None or "axes" not in node.attributes:
        axes = m.constant(given, "constant axes").ravel().tolist()
    else:
        axes = list(node.attributes["axes"].as_ints())
    last = [-1] if x.shape is None else [-1, len(x.shape) - 1]
    m.check(len(axes) == 1 and axes[0] in last, "the mean over the last axis", axes)
    m.check(node.attributes.get_int("keepdims", 1) == 1, "keepdims=1", 0)
    return x


def squared(value: ir.Value, m: Matcher) -> ir.Value:
    """The x of a value x ** 2 or x * x."""
    square = m.producer(value, "Pow", "Mul")
    x, power = square.inputs[:2]
    assert x is not None
    if square.op_type == "Pow":
        exponent = m.constant(power, "a constant exponent")
        m.check(exponent.size == 1 and exponent.item() == 2.0, "an exponent of 2", exponent)
    else:
        m.check(power is x, "x * x", "a product of two values")
    return x


def scaled(variance: ir.Value, x: ir.Value, m: Matcher) -> tuple[ir.Value, float]:
    """The value x / sqrt(variance + epsilon), however it is written, and epsilon."""
    total = m.user(variance, "Add")
    epsilon = m.constant(other_operand(total, variance), "a constant epsilon")
    m.check(epsilon.size == 1, "a constant epsilon, one number", epsilon)
    users = total.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Pow":
        power = m.constant(users[0].inputs[1], "a constant exponent")
        m.check(power.size == 1 and power.item() == -0.5, "an exponent of -1/2", power)
        normed = m.user(users[0].outputs[0], "Mul")
        m.check(x in normed.inputs, f"{x.name} scaled by its own norm", "another value")
        return normed.outputs[0], float(epsilon.item())
    root = m.user(total.outputs[0], "Sqrt").outputs[0]
    users = root.consumers()
    if len(users) == 1 and users[0].op_type == "Div":
        normed = m.user(root, "Div")
        m.check(normed.inputs[1] is root, "a division by the root", "by another value")
        one = constant(normed.inputs[0])
        if one is not None:
            m.check(one.size == 1 and one.item() == 1.0, "the inverse of the root", one)
            normed = m.user(normed.outputs[0], "Mul")
    else:
        normed = m.user(m.user(root, "Reciprocal").outputs[0], "Mul")
    m.check(x in normed.inputs, f"{x.name} scaled by its own norm", "another value")
    return normed.outputs[0], float(epsilon.item())


def affine(normed: ir.Value, m: Matcher) -> tuple[ir.Value, ir.Value]:
    """The weight of rank 1 that multiplies a normalized value, and the product."""
    product = m.user(normed, "Mul")
    weight = other_operand(product, normed)
    m.rank(weight, 1)
    return weight, product.outputs[0]


def shifted(product: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The bias of rank 1 that is added to a product, and the sum; None without a bias."""
    users = product.consumers()
    if len(users) != 1 or users[0].op_type != "Add" or product.is_graph_output():
        return None
    bias = other_operand(users[0], product)
    row = bias.shape is not None and len(bias.shape) == 1
    known = bias.is_initializer() or constant(bias) is not None
    return (bias, users[0].outputs[0]) if row and known else None
