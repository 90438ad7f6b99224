"""Neighbouring slices become one split."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.nodes import slice_bounds
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, Miss


class Slices(NodePass[list[ir.Node]]):
    """Slices that take a value apart become one split.

    before  Slice(x, 0:a) ; Slice(x, a:b) ; Slice(x, b:), along the last axis
    after   Split(x, [a, b - a, ...])
    keeps   values and shapes of the parts
    not     parts that overlap or leave a gap; two parts only, which rotary matches as they are
    why     one node, with the parts of a fused projection (queries, keys, values) side by side
    """

    name = "slices"
    anchors = ("Slice",)

    def match(self, node: ir.Node, m: Matcher) -> list[ir.Node]:
        """The slices in order; the first is the anchor."""
        x = node.inputs[0]
        assert x is not None
        width = x.shape[-1] if x.shape is not None else None
        m.check(isinstance(width, int), "a known last axis", x.shape)
        assert isinstance(width, int)
        last = (-1, len(x.shape or ()) - 1)
        start, end, axis = slice_bounds(node, m)
        m.check(axis in last, "slices of the last axis", axis)
        m.check(start == 0 and end < width, "a first part", (start, end))
        parts, reached = [node], end
        while reached < width:
            following = [n for n in x.consumers() if n.graph is node.graph and begins(n, reached)]
            m.check(len(following) == 1, f"one part from {reached} on", len(following))
            parts.append(following[0])
            reached = slice_bounds(following[0], m)[1]
        m.check(len(parts) > 2, "three parts or more", len(parts))
        return parts

    def rewrite(self, node: ir.Node, found: list[ir.Node], add: Builder) -> None:
        """Put the split in place of the first slice."""
        x = node.inputs[0]
        assert x is not None and x.shape is not None
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        add.before = next(n for n in graph if n in found)
        sizes = [part.outputs[0].shape[-1] for part in found]  # type: ignore[index]
        name = "sizes_" + "_".join(map(str, sizes))
        split = add.node(
            "Split", [x, add.constant(np.array(sizes, np.int64), name)], {"axis": -1},
            outputs=len(found),
        )  # fmt: skip
        for new, part in zip(split.outputs, found, strict=True):
            old = part.outputs[0]
            new.type, new.shape = ir.TensorType(old.dtype or ir.DataType.FLOAT), old.shape
            replace(old, new)


def begins(node: ir.Node, at: int) -> bool:
    """Whether a node is a slice of the last axis that starts at a column."""
    if node.op_type != "Slice" or node.inputs[0] is None:
        return False
    try:
        start, _, axis = slice_bounds(node, Matcher(node))
    except Miss:
        return False
    return start == at and axis in (-1, len(node.inputs[0].shape or ()) - 1)
