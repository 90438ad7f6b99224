"""Reshapes of reshapes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.match.shapes import same_shape
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, Miss, constant

CHAIN = ("Reshape", "Squeeze", "Unsqueeze")


class ReshapeChain(NodePass[ir.Value]):
    """Only the last of several reshapes in a row stays, and none that changes nothing.

    before  Reshape(Reshape(x, a), b), or Reshape(x, b) with x of shape b
    after   Reshape(x, b), or x
    keeps   values and the final shape
    not     a last shape with zeros, which mean the dimensions of the value before
    why     passes that meet in the middle each bring their own
    """

    name = "reshape_chain"
    anchors = ("Reshape",)

    def scan(self, model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value | Miss]]:
        """Last ones first: an inner reshape that went would take away what an outer one skips."""
        yield from reversed(list(super().scan(model)))

    def match(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The value to reshape, or to read, instead."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        if same_shape(source, out) and not out.is_graph_output():
            return source
        inner = m.producer(source, *CHAIN)
        shape = constant(node.inputs[1])
        m.check(shape is not None and bool((shape != 0).all()), "a final shape without 0", shape)
        first = inner.inputs[0]
        assert first is not None
        while (made := first.producer()) is not None and made.op_type in CHAIN:
            first = made.inputs[0]
            assert first is not None
        return first

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Skip the inner reshape, or this one."""
        if same_shape(found, node.outputs[0]) and not node.outputs[0].is_graph_output():
            replace(node.outputs[0], found)
        else:
            node.replace_input_with(0, found)
