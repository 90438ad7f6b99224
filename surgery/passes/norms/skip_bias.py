"""A residual norm takes the bias of what it adds along."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.biases import bias_of
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

PLACE = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Input of the bias by op."""


@dataclass(frozen=True)
class Biased:
    """The operand that is a sum, and its parts."""

    operand: int
    rows: ir.Value
    bias: ir.Value


class SkipBias(NodePass[Biased]):
    """The bias of a projection goes into the residual norm after it.

    before  SkipLayerNormalization(x + bias, y, weight, shift), or the same of RMS norms
    after   SkipLayerNormalization(x, y, weight, shift, bias)
    keeps   the sum up to rounding: the bias is added last
    not     a sum that something else reads; a second bias; another dtype than float32
    why     the bias is added while the row is in cache, not in a pass of its own
    """

    name = "skip_bias"
    anchors = tuple(PLACE)

    def match(self, node: ir.Node, m: Matcher) -> Biased:
        """The operand with a bias."""
        place = PLACE[node.op_type]
        m.check(node.domain == "com.microsoft", "onnxruntime's own op", node.domain)
        taken = len(node.inputs) > place and node.inputs[place] is not None
        m.check(not taken, "no bias yet", "a bias")
        for operand in (0, 1):
            found = bias_of(node.inputs[operand])
            rows = node.inputs[1 - operand]
            if found is None or rows is None or rows.shape is None:
                continue
            if operand == 0 and rows.shape != node.outputs[0].shape:
                continue  # the broadcast operand of the op is the second one
            return Biased(operand, *found)
        m.check(False, "an operand that is rows and a stored bias", "none")
        raise AssertionError

    def rewrite(self, node: ir.Node, found: Biased, add: Builder) -> None:
        """Hand the bias over."""
        node.replace_input_with(found.operand, found.rows)
        node.resize_inputs(PLACE[node.op_type] + 1)
        node.replace_input_with(PLACE[node.op_type], found.bias)
