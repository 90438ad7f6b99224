"""Rotary angles are repeated after taking cosines and sines, not before."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.nodes import other_operand
from surgery.match.rotary import once
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant


@dataclass(frozen=True)
class Repeated:
    """A cosine or sine of angles that each appear twice.

    Attributes:
        angle: the angles, each once.
        path: the nodes that repeat them, in order.
        scale: a constant factor of the result, or None.
        end: the result.
    """

    angle: ir.Value
    path: tuple[ir.Node, ...]
    scale: ir.Value | None
    end: ir.Value


class HalfAngles(NodePass[Repeated]):
    """Cosines and sines are computed once for each angle.

    before  Cos(Concat(f, f)) * scale, or Cos(Reshape(Expand(Unsqueeze(f, -1)))) for pairs
    after   c = Cos(f) * scale ; Concat(c, c), or the same repetition of c
    keeps   every number: cosines and sines act on each angle alone
    not     angles whose two copies differ
    why     half the trigonometry, and the form that rotary tables and ops start from
    """

    name = "half_angles"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Cos", "Sin")

    def match(self, node: ir.Node, m: Matcher) -> Repeated:
        """The angles before they were repeated."""
        value = node.inputs[0]
        assert value is not None
        last = m.producer(value, "Concat", "Reshape")
        path = [last]
        if last.op_type == "Reshape":
            path.insert(0, m.producer(last.inputs[0], "Expand"))
            path.insert(0, m.producer(path[0].inputs[0], "Unsqueeze"))
        angle = once(value, m, interleaved=last.op_type == "Reshape")
        axis = last.attributes.get_int("axis", -1)
        m.check(axis in (-1, len(angle.shape or ()) - 1), "angles joined at the end", axis)
        end, scale = node.outputs[0], None
        users = end.consumers()
        if len(users) == 1 and users[0].op_type == "Mul" and not end.is_graph_output():
            factor = other_operand(users[0], end)
            numbers = constant(factor)
            if numbers is not None and numbers.ndim == 0:
                scale, end = factor, users[0].outputs[0]
        return Repeated(angle, tuple(path), scale, end)

    def rewrite(self, node: ir.Node, found: Repeated, add: Builder) -> None:
        """Take the cosine, scale it, then repeat it."""
        value = add(node.op_type, [found.angle], like=found.angle)
        if found.scale is not None:
            value = add("Mul", [value, found.scale], like=value)
        for step in found.path:
            inputs = [value, value] if step.op_type == "Concat" else [value, *step.inputs[1:]]
            attributes = {key: attribute.value for key, attribute in step.attributes.items()}
            value = add(step.op_type, inputs, attributes, like=step.outputs[0])
        replace(found.end, value)
