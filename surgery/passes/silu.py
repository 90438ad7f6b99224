"""The gate of a gated MLP as one node."""

from __future__ import annotations

import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, replace


class Silu(NodePass[tuple[ir.Value, ir.Value]]):
    """SiLU becomes one node.

    before  x * Sigmoid(x)
    after   QuickGelu(x, alpha=1)
    keeps   the numbers up to rounding
    not     the sigmoid of another value than x (a plain gate)
    why     one pass over the widest activation instead of two
    """

    name = "silu"
    anchors = ("Sigmoid",)

    def match(self, node: ir.Node, m: Matcher) -> tuple[ir.Value, ir.Value]:
        """x, and the product."""
        x = node.inputs[0]
        product = m.user(node.outputs[0], "Mul")
        assert x is not None
        m.check(x in product.inputs, "x * Sigmoid(x)", "a product with another value")
        return x, product.outputs[0]

    def rewrite(self, node: ir.Node, found: tuple[ir.Value, ir.Value], add: Builder) -> None:
        """One node in place of two."""
        x, out = found
        quick = add("QuickGelu", [x], {"alpha": 1.0}, domain="com.microsoft", like=out)
        replace(out, quick)
