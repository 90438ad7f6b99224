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

    def __init__(self, *, expect: int | None = None) -> None:
        super().__init__(expect=expect)
        self.begins: dict[ir.Value, ir.Value] = {}

    def forget(self) -> None:
        """Chains are followed anew."""
        self.begins.clear()

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
        return self.begin(source)

    def begin(self, value: ir.Value) -> ir.Value:
        """Where the chain that makes a value begins; each part of it is walked once."""
        passed = []
        while value not in self.begins:
            made = value.producer()
            before = made.inputs[0] if made is not None and made.op_type in CHAIN else None
            if before is None:
                self.begins[value] = value
            else:
                passed.append(value)
                value = before
        found = self.begins[value]
        self.begins.update(dict.fromkeys(passed, found))
        return found

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Bypass the inner reshapes, or this one too if it changes nothing."""
        if same_shape(found, node.outputs[0]) and not node.outputs[0].is_graph_output():
            replace(node.outputs[0], found)
            add.graph.remove(node, safe=True)  # else it would read along wherever `found` leads
        else:
            node.replace_input_with(0, found)
