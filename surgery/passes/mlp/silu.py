"""SiLU and quick GELU become one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.nodes import other_operand
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Gated:
    """x * Sigmoid(alpha * x)."""

    x: ir.Value
    alpha: float
    end: ir.Value


class Silu(NodePass[Gated]):
    """SiLU, and the quick GELU, become one node.

    before  x * Sigmoid(x), or x * Sigmoid(1.702 * x)
    after   QuickGelu(x, alpha=1), or alpha=1.702
    keeps   the numbers up to rounding
    not     the sigmoid of another value than x, as in a gated linear unit
    why     one pass over the widest activation instead of two or three
    """

    name = "silu"
    needs = ("dims", "fold", "noop")
    anchors = ("Sigmoid",)

    def match(self, node: ir.Node, m: Matcher) -> Gated:
        """x, its factor, and the product."""
        x = node.inputs[0]
        product = m.user(node.outputs[0], "Mul")
        assert x is not None
        alpha = 1.0
        if x not in product.inputs and (made := x.producer()) and made.op_type == "Mul":
            gate = other_operand(product, node.outputs[0])
            if gate in made.inputs:
                factor = m.constant(other_operand(made, gate), "a constant factor")
                m.check(factor.size == 1 and factor.ndim == 0, "one factor", factor.shape)
                x, alpha = gate, float(factor)
        m.check(x in product.inputs, "x * Sigmoid(x)", "a product with another value")
        return Gated(x, alpha, product.outputs[0])

    def rewrite(self, node: ir.Node, found: Gated, add: Builder) -> None:
        """Put one node in place of two or three."""
        attributes = {"alpha": found.alpha}
        quick = add("QuickGelu", [found.x], attributes, domain="com.microsoft", like=found.end)
        replace(found.end, quick)
