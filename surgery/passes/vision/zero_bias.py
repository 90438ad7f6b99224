"""Biases that are zero."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class ZeroBias(NodePass[None]):
    """A bias of zeros is removed.

    before  Conv(x, weight, zeros), or Gemm alike
    after   Conv(x, weight)
    keeps   the numbers
    not     a bias that is a weight
    why     torch adds one to layers without a bias; that of Conv3d has one axis too many, and
            onnxruntime rejects it
    """

    name = "zero_bias"
    anchors = ("Conv", "Gemm")

    def match(self, node: ir.Node, m: Matcher) -> None:
        """A constant third input, all zeros."""
        m.check(len(node.inputs) > 2 and node.inputs[2] is not None, "a bias", "none")
        numbers = m.constant(node.inputs[2], "a constant bias")
        m.check(not numbers.any(), "a bias of zeros", "other numbers")

    def rewrite(self, node: ir.Node, found: None, add: Builder) -> None:
        """Remove the third input."""
        node.resize_inputs(2)
