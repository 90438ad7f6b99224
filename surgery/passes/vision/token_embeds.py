"""The embedding graph looks up tokens only; features are put in place outside of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.placeholders import Scatter, scattered
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class TokenEmbeds(NodePass[Scatter]):
    """Every token has its own embedding, followed by zeros where DeepStack features would be.

    before  inputs_embeds [B, S, H] = ScatterND(embeds, NonZero(mask), image_features [M, H])
    after   inputs_embeds [B, S, (1 + D) * H] = Pad(embeds) ; image_features and the output
            visual_pos_masks are gone
    keeps   the embedding of every token; that of a placeholder, too
    not     features that the graph computes
    why     transformers.js copies each row of the vision graph's image_features
            [M, (1 + D) * H] over the row of its placeholder; zeros are what DeepStack adds at text
    """

    name = "token_embeds"
    anchors = ("ScatterND",)

    def __init__(self, levels: int, *, expect: int | None = None) -> None:
        """Set the number of DeepStack levels.

        Args:
            levels: D, 0 without DeepStack; nothing is padded then.
        """
        super().__init__(expect=expect)
        self.levels = levels

    def match(self, node: ir.Node, m: Matcher) -> Scatter:
        """Features scattered into embeddings that are a graph output."""
        out = node.outputs[0]
        m.check(out.is_graph_output(), "a graph output", out.name)
        return scattered(node, m)

    def rewrite(self, node: ir.Node, found: Scatter, add: Builder) -> None:
        """Pad the embeddings, or take them as they are."""
        embeds, graph = found.embeds, add.graph
        out = embeds
        if self.levels:
            assert embeds.shape is not None and embeds.dtype is not None
            b, s, h = embeds.shape
            assert isinstance(h, int)
            room = h * self.levels
            pads = add.constant(np.array([0, 0, 0, 0, 0, room], np.int64), f"pad_columns_{room}")
            out = add("Pad", [embeds, pads], dtype=embeds.dtype, shape=(b, s, h + room))
        replace(node.outputs[0], out)
        graph.outputs[:] = [out]
        graph.remove(node, safe=True)
        graph.inputs.remove(found.features)
