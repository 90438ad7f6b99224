"""MultiHeadAttention takes the biases of its projections along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.biases import bias_of
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import numbers

BIAS = 3
"""Input of the biases."""


@dataclass(frozen=True)
class Projections:
    """Queries, keys and values before their biases, `[B, S, N * D]`; None where one has none."""

    rows: tuple[ir.Value, ir.Value, ir.Value]
    biases: tuple[ir.Value | None, ir.Value | None, ir.Value | None]


class AttentionBias(NodePass[Projections]):
    """The biases of three projections become one input of the attention after them.

    before  MultiHeadAttention(q + b_q, k + b_k, v + b_v)
    after   MultiHeadAttention(q, k, v, [b_q, b_k, b_v]), zeros for one that is missing
    keeps   values up to rounding
    not     sums that something else reads; biases that are computed; no bias at all; values of
            another width than queries
    why     three passes over activations go; the op adds while it moves heads
    """

    name = "attention_bias"
    needs = ("multi_head_attention",)
    anchors = ("MultiHeadAttention",)

    def match(self, node: ir.Node, m: Matcher) -> Projections:
        """The projections and their biases."""
        m.check(node.domain == "com.microsoft", "onnxruntime's own op", node.domain)
        taken = len(node.inputs) > BIAS and node.inputs[BIAS] is not None
        m.check(not taken, "no bias yet", "a bias")
        values = node.inputs[:3]
        m.check(len(values) == 3 and None not in values, "queries, keys and values", len(values))
        rows, biases = [], []
        for value in values:
            assert value is not None
            m.rank(value, 3)
            found = bias_of(value)
            rows.append(found[0] if found is not None else value)
            biases.append(found[1] if found is not None else None)
        m.check(any(bias is not None for bias in biases), "rows and a stored bias", "none")
        widths = {str(value.shape[-1]) for value in values if value is not None and value.shape}
        m.check(len(widths) == 1, "one width", widths)
        q, k, v = rows
        return Projections((q, k, v), (biases[0], biases[1], biases[2]))

    def rewrite(self, node: ir.Node, found: Projections, add: Builder) -> None:
        """Join the biases."""
        width = next(bias.shape[0] for bias in found.biases if bias is not None and bias.shape)
        assert isinstance(width, int)
        parts = [
            np.zeros(width, np.float32)
            if bias is None or bias.const_value is None
            else np.asarray(numbers(bias.const_value), np.float32)
            for bias in found.biases
        ]
        named = next(bias.name for bias in found.biases if bias is not None)
        joined = add.constant(np.concatenate(parts), f"{named}.joined")
        for i, rows in enumerate(found.rows):
            node.replace_input_with(i, rows)
        node.resize_inputs(max(len(node.inputs), BIAS + 1))
        node.replace_input_with(BIAS, joined)
