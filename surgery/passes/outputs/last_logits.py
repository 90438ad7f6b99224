"""Logits for the last position only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.logits import before_head, path_to_logits
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class LastLogits(NodePass[ir.Value]):
    """The output projection (the head) multiplies the last position instead of all.

    before  logits [B, S, V] = MatMul(hidden [B, S, H], head), perhaps scaled or capped
    after   logits [B, 1, V] = MatMul(Slice(hidden, -1:), head), scaled or capped alike
    keeps   the logits of the last position; onnxruntime-genai recognizes them by the static 1
    not     logits that have one position already
    why     a prompt of S tokens computes S rows of V numbers, of which the sampler reads one
    """

    name = "last_logits"
    anchors = ("MatMul",)

    def match(self, node: ir.Node, m: Matcher) -> ir.Value:
        """The hidden state before the head."""
        hidden = before_head(node, m)
        assert hidden.shape is not None
        m.check(hidden.shape[1] != 1, "more positions than one", hidden.shape)
        return hidden

    def rewrite(self, node: ir.Node, found: ir.Value, add: Builder) -> None:
        """Slice off the last position."""
        assert found.shape is not None
        starts, ends, axes = (
            add.constant(np.array([n], np.int64), f"ints_{n}") for n in (-1, 1 << 62, 1)
        )
        b, _, h = found.shape
        last = add("Slice", [found, starts, ends, axes], dtype=found.dtype, shape=(b, 1, h))
        node.replace_input_with(0, last)
        for value in path_to_logits(node):
            assert value.shape is not None
            value.shape = ir.Shape((value.shape[0], 1, value.shape[2]))
