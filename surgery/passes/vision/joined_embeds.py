"""DeepStack features reach the decoder in the columns behind the embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Parts:
    """The two inputs of a decoder, and the levels that the second is split into.

    Attributes:
        embeds: `[B, S, H]`.
        features: `[B, S, D * H]`.
        width: H.
        levels: D of `[B, S, H]`.
    """

    embeds: ir.Value
    features: ir.Value
    width: int
    levels: list[ir.Value]


class JoinedEmbeds(NodePass[Parts]):
    """Embeddings and DeepStack features are one input, which the decoder splits.

    before  inputs_embeds [B, S, H] ; levels = Split(per_layer_inputs [B, S, D * H])
    after   embeds, levels = Split(inputs_embeds [B, S, (1 + D) * H]) ; no per_layer_inputs
    keeps   every number, and the name inputs_embeds of the wide input
    not     levels of another width than the embeddings; features that something else reads, too
    why     transformers.js hands one tensor from the embedding graph to the decoder, of any width
    """

    name = "joined_embeds"
    needs = ("deepstack",)
    anchors = ("Split",)

    def match(self, node: ir.Node, m: Matcher) -> Parts:
        """A split of the input `per_layer_inputs` into parts as wide as `inputs_embeds`."""
        features = node.inputs[0]
        assert features is not None
        named = features.is_graph_input() and features.name == "per_layer_inputs"
        m.check(named, "a split of the input per_layer_inputs", features.name)
        m.check(len(features.uses()) == 1, "features split alone", len(features.uses()))
        axis = node.attributes.get_int("axis", 0)
        m.check(axis in (-1, 2), "columns split", f"axis {axis}")
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        embeds = next((v for v in graph.inputs if v.name == "inputs_embeds"), None)
        m.check(embeds is not None, "an input inputs_embeds", "none")
        assert embeds is not None
        m.rank(embeds, 3)
        assert embeds.shape is not None
        width = embeds.shape[2]
        sizes = m.constant(node.inputs[1], "constant widths").tolist()
        m.check(set(sizes) == {width}, "levels as wide as the embeddings", (sizes, width))
        assert isinstance(width, int)
        return Parts(embeds, features, width, list(node.outputs))

    def rewrite(self, node: ir.Node, found: Parts, add: Builder) -> None:
        """Widen the input, and split both from it at the start of the graph."""
        graph, embeds, width = add.graph, found.embeds, found.width
        assert embeds.shape is not None
        narrow, count = embeds.shape, 1 + len(found.levels)
        embeds.shape = ir.Shape((narrow[0], narrow[1], width * count))
        add.before = graph[0]
        sizes = add.constant(np.full(count, width, np.int64), f"{count}_times_{width}")
        split = add.node("Split", [embeds, sizes], {"axis": -1}, outputs=count)
        for value in split.outputs:
            value.type, value.shape = ir.TensorType(embeds.dtype or ir.DataType.FLOAT), narrow
        for use in list(embeds.uses()):
            if use.node is not split:
                use.node.replace_input_with(use.idx, split.outputs[0])
        for level, part in zip(found.levels, split.outputs[1:], strict=True):
            level.replace_all_uses_with(part)
        graph.remove(node, safe=True)
        graph.inputs.remove(found.features)
