"""GELU takes the bias before it along."""

from __future__ import annotations

import onnx_ir as ir

from surgery.match.biases import biased
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class BiasGelu(NodePass[tuple[ir.Value, ir.Value]]):
    """A bias and the GELU after it become one node.

    before  Gelu(x + bias), exact or by a tangent
    after   BiasGelu(x, bias), or FastGelu(x, bias)
    keeps   the numbers up to rounding
    not     a sum that something else reads; a bias that is computed; other dtypes than float32
    why     one pass over the widest activation instead of two
    """

    name = "bias_gelu"
    needs = ("dims", "fold", "noop", "gelu")
    anchors = ("Gelu",)

    def match(self, node: ir.Node, m: Matcher) -> tuple[ir.Value, ir.Value]:
        """The rows and the bias."""
        m.check(node.domain == "", "ONNX's own Gelu", node.domain)
        return biased(node.inputs[0], m)

    def rewrite(self, node: ir.Node, found: tuple[ir.Value, ir.Value], add: Builder) -> None:
        """One node in place of two."""
        tangent = node.attributes.get_string("approximate", "none") == "tanh"
        op = "FastGelu" if tangent else "BiasGelu"
        out = add(op, list(found), domain="com.microsoft", like=node.outputs[0])
        replace(node.outputs[0], out)
