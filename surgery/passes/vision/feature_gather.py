"""Image and DeepStack features are placed in the sequence of embeddings."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.placeholders import Scatter, scattered
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

INT64 = ir.DataType.INT64


class FeatureGather(NodePass[Scatter]):
    """Each placeholder token gathers its row of features; nothing is scattered.

    before  inputs_embeds = ScatterND(embeds, NonZero(mask), image_features [M, H])
    after   row = Gather(Concat(features, zeros), number of the placeholder, or the zero row) ;
            inputs_embeds = Where(mask and in range, row[:H], embeds) ;
            per_layer_inputs = row[H:], an output in place of visual_pos_masks,
            where a family has DeepStack; else row has H columns
    keeps   inputs_embeds, if there are as many features as placeholders
    not     features that the graph computes
    why     a placeholder without a feature (a sampled one, or no picture) keeps its own
            embedding instead of failing the run, and no shape depends on data
    upstream microsoft/onnxruntime-genai#2513
    """

    name = "feature_gather"
    anchors = ("ScatterND",)

    def __init__(self, levels: int, *, expect: int | None = None) -> None:
        """Set the number of DeepStack levels.

        Args:
            levels: D, 0 without DeepStack; the features have (1 + D) * H columns.
        """
        super().__init__(expect=expect)
        self.levels = levels

    def match(self, node: ir.Node, m: Matcher) -> Scatter:
        """The embeddings, the mask behind the indices, the features behind the updates."""
        return scattered(node, m)

    def rewrite(self, node: ir.Node, found: Scatter, add: Builder) -> None:
        """Number the placeholders through the batch, gather their rows, split off the levels."""

        def ints(*numbers: int) -> ir.Value:
            return add.constant(np.array(numbers, np.int64), "ints_" + "_".join(map(str, numbers)))

        def scalar(number: int) -> ir.Value:
            return add.constant(np.array(number, np.int64), f"int_{number}")

        embeds, features = found.embeds, found.features
        assert embeds.shape is not None and embeds.dtype is not None
        b, s, h = embeds.shape
        assert isinstance(h, int)
        wide = h * (1 + self.levels)
        assert features.shape is not None
        features.shape = ir.Shape((features.shape[0], wide))

        def op(
            name: str, inputs: list[ir.Value], *, dtype: ir.DataType = INT64, **attributes: int
        ) -> ir.Value:
            return add(name, inputs, attributes, dtype=dtype, shape=(b, s))

        number = add("Cast", [found.mask], {"to": INT64}, dtype=INT64, shape=(b, s))
        flat = add("Reshape", [number, ints(-1)], dtype=INT64, shape=(None,))
        counted = add("CumSum", [flat, scalar(0)], {"exclusive": 1}, dtype=INT64, shape=(None,))
        shape = add("Shape", [found.mask], dtype=INT64, shape=(2,))
        number = op("Reshape", [counted, shape])
        total = add("Shape", [features], {"start": 0, "end": 1}, dtype=INT64, shape=(1,))
        present = op("Less", [number, total], dtype=ir.DataType.BOOL)
        present = op("And", [present, found.mask], dtype=ir.DataType.BOOL)
        number = op("Where", [present, number, total])
        zeros = add.constant(np.zeros((1, wide), features.dtype.numpy()), "no_feature")  # type: ignore[union-attr]
        padded = add(
            "Concat", [features, zeros], {"axis": 0}, dtype=features.dtype, shape=(None, wide)
        )
        rows = add(
            "Gather", [padded, number], {"axis": 0}, dtype=features.dtype, shape=(b, s, wide)
        )
        beside: list[ir.Value] = []
        if self.levels:
            split = add.node("Split", [rows, ints(h, wide - h)], {"axis": -1}, outputs=2)
            for out, width in zip(split.outputs, (h, wide - h), strict=True):
                out.type = ir.TensorType(features.dtype or ir.DataType.FLOAT)
                out.shape = ir.Shape((b, s, width))
            rows, levels = split.outputs
            levels.name = "per_layer_inputs"
            beside = [levels]
        lifted = add("Unsqueeze", [present, ints(-1)], dtype=ir.DataType.BOOL, shape=(b, s, 1))
        merged = add("Where", [lifted, rows, embeds], like=embeds)
        replace(node.outputs[0], merged)
        add.graph.outputs[:] = [merged, *beside]
