"""Nodes that return their input unchanged."""

from __future__ import annotations

import onnx_ir as ir

from surgery.match.shapes import same_shape
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant

FAR = 1 << 30
"""A slice end at or above this means "to the end"."""


class Noop(NodePass[ir.Value]):
    """Nodes without effect are bypassed.

    before  Slice of everything, Transpose that keeps the order, Expand to the same shape, Cast to
            the same dtype, x * 1, x / 1, x + 0 ; Reshape to the same shape where that is asked for
    after   the input itself
    keeps   values, shapes and types
    not     graph outputs that come directly from a graph input, an initializer, another output or
            another op of this kind
    why     torch writes `x[:]` as Slice and `expand(-1)` as Expand, which interrupt patterns
    """

    name = "noop"
    anchors = ("Reshape", "Slice", "Transpose", "Expand", "Cast", "Mul", "Add", "Div")

    def __init__(self, reshapes: bool = False, *, expect: int | None = None) -> None:
        """Choose the ops.

        Args:
            reshapes: whether a Reshape to the same shape goes too; `reshape_chain` removes it
                later where passes match it first.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.reshapes = reshapes

    def match(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The value to read instead."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        if node.op_type == "Slice":
            starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
            steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
            m.check(starts is not None and not starts.any(), "starts of 0", starts)
            opened = ends is not None and bool((ends >= FAR).all())
            m.check(opened or same_shape(source, out), "open ends, or those of the input", ends)
            m.check(steps is None or bool((steps == 1).all()), "steps of 1", steps)
        elif node.op_type == "Reshape":
            m.check(self.reshapes, "reshapes asked for", "Reshape")
            m.check(same_shape(source, out), "the shape of the input", out.shape)
        elif node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", ())
            m.check(list(perm) == list(range(len(perm))) and bool(perm), "axes in order", perm)
        elif node.op_type == "Expand":
            shape = constant(node.inputs[1])
            m.check(shape is not None, "a constant shape", "a computed one")
            assert shape is not None
            dims = list(source.shape or ())[-shape.size :]
            fits = len(dims) == shape.size and all(
                n in (1, d) for n, d in zip(shape.tolist(), dims, strict=True)
            )
            m.check(fits, f"an input that {shape.tolist()} leaves as it is", source.shape)
        elif node.op_type == "Cast":
            target = node.attributes["to"].as_int()
            m.check(source.dtype == target, f"an input of dtype {target}", source.dtype)
        else:
            source = self.neutral(node, m)
        if out.is_graph_output():
            maker = source.producer()
            named = maker is None or maker.op_type in self.anchors or source.is_graph_output()
            m.check(not named, "an output computed by another node", out.name)
        return source

    def neutral(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The operand beside a scalar 1 of Mul or Div, or a scalar 0 of Add."""
        element = 0.0 if node.op_type == "Add" else 1.0
        a, b = node.inputs[:2]
        pairs = ((a, b),) if node.op_type == "Div" else ((a, b), (b, a))
        for value, other in pairs:
            numbers = constant(other)
            if value is None or numbers is None or numbers.ndim or constant(value) is not None:
                continue
            if numbers == element:
                return value
        m.check(False, f"a scalar {element:g}", "another operand")
        raise AssertionError

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Let the readers read the input."""
        replace(node.outputs[0], found)
