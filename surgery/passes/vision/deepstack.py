"""DeepStack features enter the decoder through an input that onnxruntime-genai supports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.nodes import slice_bounds
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Level:
    """One addition of DeepStack features to the residual stream."""

    hidden: ir.Value
    features: ir.Value
    index: int


class DeepStack(NodePass[Level]):
    """Features are added at every position, zeros at text, instead of scattered to pictures.

    before  ScatterND(h, where(visual_pos_masks), GatherND(h, where) + deepstack_features[i])
    after   h + Split(per_layer_inputs [B, S, D * H])[i]
    keeps   the residual stream: x + 0 is x at text positions
    not     features that the graph computes
    why     onnxruntime-genai has no name for DeepStack, but passes per_layer_inputs on from the
            embedding graph to the decoder
    upstream microsoft/onnxruntime-genai#1989
    """

    name = "deepstack"
    anchors = ("ScatterND",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.levels: list[ir.Value] = []

    def match(self, node: ir.Node, m: Matcher) -> Level:
        """The residual, and which level is added."""
        hidden, indices, updates = node.inputs
        assert hidden is not None
        mask = places(indices, m)
        while (spread := m.producer(updates, "Reshape", "Expand", "Add")).op_type != "Add":
            updates = spread.inputs[0]
        picked, level = m.operands(spread, "GatherND")
        m.check(picked.inputs[0] is hidden, "rows of the residual", picked.inputs[0])
        m.check(places(picked.inputs[1], m) is mask, "one mask for reading and writing", "another")
        taken = m.producer(level, "Squeeze").inputs[0]
        # the slice of a single level is all of the features, and `noop` has removed it
        whole = taken is not None and taken.is_graph_input()
        part = None if whole else m.producer(taken, "Slice")
        features = taken if part is None else part.inputs[0]
        assert features is not None
        m.check(features.is_graph_input(), "features that are a graph input", features.name)
        m.rank(features, 3)
        reduction = node.attributes.get_string("reduction", "none")
        m.check(reduction == "none", "rows put in place", reduction)
        if part is None:
            levels = features.shape[0] if features.shape is not None else None
            m.check(levels == 1, "the features of one level", levels)
            return Level(hidden, features, 0)
        start, end, axis = slice_bounds(part, m)
        m.check((end, axis) == (start + 1, 0), "one level along axis 0", (start, end, axis))
        return Level(hidden, features, start)

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.levels = []

    def apply(self, model: ir.Model) -> int:
        """Rewrite, then remove the graph inputs that only the scattered form reads."""
        count = super().apply(model)
        if count:
            remeasure(model.graph)
            unread = [v for v in model.graph.inputs if not v.uses() and v.name in SPARSE]
            for value in unread:
                model.graph.inputs.remove(value)
        return count

    def rewrite(self, node: ir.Node, found: Level, add: Builder) -> None:
        """Add a level; the first site also adds the graph input and its split."""
        if not self.levels:
            self.levels = self.split(found, add)
        level = self.levels[found.index]
        replace(node.outputs[0], add("Add", [found.hidden, level], like=found.hidden))

    def split(self, found: Level, add: Builder) -> list[ir.Value]:
        """`per_layer_inputs [B, S, D * H]` in D parts."""
        assert found.hidden.shape is not None and found.features.shape is not None
        b, s, h = found.hidden.shape
        count = found.features.shape[0]
        assert isinstance(h, int) and isinstance(count, int)
        dtype = ir.TensorType(found.hidden.dtype or ir.DataType.FLOAT)
        wide = ir.Value(name="per_layer_inputs", type=dtype, shape=ir.Shape((b, s, count * h)))
        graph = add.graph
        place = next(i for i, v in enumerate(graph.inputs) if v.name == "inputs_embeds") + 1
        graph.inputs.insert(place, wide)
        sizes = add.constant(np.full(count, h, np.int64), f"{count}_times_{h}")
        node = add.node("Split", [wide, sizes], {"axis": -1}, outputs=count)
        for value in node.outputs:
            value.type, value.shape = dtype, ir.Shape((b, s, h))
        return list(node.outputs)


def remeasure(graph: ir.Graph) -> None:
    """Take lengths from `inputs_embeds [B, S, H]` where the trace took them from the mask."""
    inputs = {value.name: value for value in graph.inputs}
    mask, embeds = (inputs.get(name) for name in (SPARSE[0], "inputs_embeds"))
    if mask is None or embeds is None or mask.shape is None or embeds.shape is None:
        return
    if embeds.shape[: len(mask.shape)] == tuple(mask.shape):
        for use in list(mask.uses()):
            if use.node.op_type == "Shape":
                end = use.node.attributes.get_int("end", len(mask.shape))
                use.node.attributes["end"] = ir.AttrInt64("end", end)
                use.node.replace_input_with(0, embeds)


def places(indices: ir.Value | None, m: Matcher) -> ir.Value:
    """The mask whose true positions are `indices`, before it was expanded to the columns."""
    mask = m.producer(m.producer(indices, "Transpose").inputs[0], "NonZero").inputs[0]
    while (node := mask.producer() if mask else None) and node.op_type in ("Expand", "Unsqueeze"):
        mask = node.inputs[0]
    assert mask is not None
    return mask


SPARSE = ("visual_pos_masks", "deepstack_features")
"""Inputs of the raw decoder that the graph no longer reads after the pass."""
