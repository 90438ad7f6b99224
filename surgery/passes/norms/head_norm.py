"""Heads are normalized before they are moved to the front, not after."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class HeadNorm(NodePass[ir.Node]):
    """Heads are normalized before they are moved to the front.

    before  RMSNormalization(Transpose(x [B, S, N, D], [0, 2, 1, 3]), weight)
    after   Transpose(RMSNormalization(x, weight), [0, 2, 1, 3])
    keeps   values and shapes: a norm over the last axis does not depend on the others
    not     a transpose that moves the last axis, or that another node reads too
    why     attention ops read heads as the projection writes them; a later pass drops the transpose
    """

    name = "head_norm"
    needs = ("dims", "fold", "noop")
    anchors = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization")

    def match(self, node: ir.Node, m: Matcher) -> ir.Node:
        """The transpose before the norm."""
        moved = m.producer(node.inputs[0], "Transpose")
        perm = list(moved.attributes.get_ints("perm", ()))
        last = len(perm) - 1
        m.check(bool(perm) and perm[-1] == last, "a last axis that stays", perm)
        axis = node.attributes.get_int("axis", -1)
        m.check(axis in (-1, last), "a norm over the last axis", axis)
        m.check(moved.inputs[0] is not None and moved.graph is node.graph, "one graph", "two")
        m.check(len(moved.outputs[0].uses()) == 1, "heads read by the norm alone", "more readers")
        return moved

    def rewrite(self, node: ir.Node, found: ir.Node, add: Builder) -> None:
        """Normalize, then transpose."""
        source = found.inputs[0]
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        normed = add(node.op_type, [source, *node.inputs[1:]], attributes, like=source)
        perm = {"perm": list(found.attributes["perm"].as_ints())}
        replace(node.outputs[0], add("Transpose", [normed], perm, like=node.outputs[0]))
