"""Image and DeepStack features leave the vision graph side by side."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


class FeatureConcat(NodePass[tuple[ir.Value, list[ir.Value]]]):
    """The two outputs of the vision graph become one.

    before  image_features [M, H] ; deepstack_features [D, M, H] = Concat(Unsqueeze(level) ...)
    after   image_features [M, (1 + D) * H] = Concat(features, level 0, ..., level D-1)
    keeps   the name image_features and every number
    not     a vision graph without DeepStack
    why     onnxruntime-genai passes exactly one vision output on to the embedding graph
    upstream microsoft/onnxruntime-genai#1989
    """

    name = "feature_concat"
    anchors = ("Concat", "Unsqueeze")  # a stack of one level is a lone Unsqueeze

    def match(self, node: ir.Node, m: Matcher) -> tuple[ir.Value, list[ir.Value]]:
        """The plain features and the levels."""
        out = node.outputs[0]
        m.check(out.is_graph_output(), "a graph output", out.name)
        m.check(out.name == "deepstack_features", "deepstack_features", out.name)
        if node.op_type == "Concat":
            stacked = node.attributes["axis"].as_int()
            m.check(stacked == 0, "levels stacked along axis 0", stacked)
        levels = []
        for value in node.inputs if node.op_type == "Concat" else node.outputs:
            lifted = m.producer(value, "Unsqueeze")
            axis = m.constant(lifted.inputs[1]).ravel().tolist()
            m.check(axis == [0], "levels stacked along axis 0", axis)
            assert lifted.inputs[0] is not None
            levels.append(lifted.inputs[0])
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        named = [v for v in graph.outputs if v.name == "image_features"]
        m.check(len(named) == 1, "an output image_features", len(named))
        m.check(len(graph.outputs) == 2, "two outputs", len(graph.outputs))
        return named[0], levels

    def rewrite(self, node: ir.Node, found: tuple[ir.Value, list[ir.Value]], add: Builder) -> None:
        """Join the columns at the end of the graph, where all features are computed."""
        features, levels = found
        graph = add.graph
        assert features.shape is not None
        width = features.shape[1]
        assert isinstance(width, int)
        wide = add.node("Concat", [features, *levels], {"axis": -1})
        graph.remove(wide)
        graph.append(wide)
        out = wide.outputs[0]
        out.type = ir.TensorType(features.dtype or ir.DataType.FLOAT)
        out.shape = ir.Shape((features.shape[0], width * (1 + len(levels))))
        features.name = add.unique("image_features.plain")
        out.name = "image_features"
        graph.outputs[:] = [out]
