"""Chains of reshapes, and reshapes without effect."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.match.shapes import same_shape
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, Miss, constant

CHAIN = ("Reshape", "Squeeze", "Unsqueeze")


class ReshapeChain(NodePass[ir.Value]):
    """Of several reshapes in a row only the last stays; those that change nothing are removed.

    before  Reshape(Reshape(x, a), b), or Reshape(x, b) with x of shape b, directly or behind
            another reshape
    after   Reshape(x, b), or x
    keeps   values and the final shape
    not     a last shape that contains 0, which copies a dimension of its own input
    why     passes add a reshape before and after their op, and neighbours meet
    """

    name = "reshape_chain"
    anchors = ("Reshape",)

    def scan(self, model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value | Miss]]:
        """Anchors from last to first: without its inner reshape, an outer one would not match."""
        yield from reversed(list(super().scan(model)))

    def match(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The value to reshape instead, or to read instead of the result."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        if same_shape(source, out) and not out.is_graph_output():
            return source
        inner = m.producer(source, *CHAIN)
        begin = inner.inputs[0]
        if begin is not None and same_shape(begin, out) and not out.is_graph_output():
            return begin
        shape = constant(node.inputs[1])
        m.check(shape is not None and bool((shape != 0).all()), "a final shape without 0", shape)
        first = inner.inputs[0]
        assert first is not None
        while (made := first.producer()) is not None and made.op_type in CHAIN:
            first = made.inputs[0]
            assert first is not None
        return first

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Bypass the inner reshapes, or this one too if it changes nothing."""
        if same_shape(found, node.outputs[0]) and not node.outputs[0].is_graph_output():
            replace(node.outputs[0], found)
        else:
            node.replace_input_with(0, found)
