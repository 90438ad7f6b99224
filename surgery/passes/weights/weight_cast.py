"""Weights are stored in the dtype in which they are used."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Cast, Source, set_source, source_of


class WeightCast(NodePass[Source]):
    """A cast of a whole weight becomes the weight's own dtype.

    before  Cast(weight: bf16) read as float32
    after   weight: float32, cast when the package is written, a few rows at a time
    keeps   the weight's name and its exact numbers (a cast to float32 is exact)
    not     casts of rows after Gather: the embedding table stays in bf16, half the size; weights
            that another node reads too
    why     onnxruntime would hold both copies; its CPU provider does not compute in bf16
    """

    name = "weight_cast"
    anchors = ("Cast",)

    def match(self, node: ir.Node, m: Matcher) -> Source:
        """The weight's new source."""
        weight = node.inputs[0]
        assert weight is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        source = source_of(weight)
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        assert source is not None
        readers = [use.node.op_type for use in weight.uses()]
        alone = len(readers) == 1 and not weight.is_graph_output()
        m.check(alone, f"{weight.name} read by this Cast alone", readers)
        return Cast(source, ir.DataType(node.attributes["to"].as_int()))

    def rewrite(self, node: ir.Node, found: Source, add: Builder) -> None:
        """Change the weight and drop the cast."""
        weight = node.inputs[0]
        assert weight is not None
        set_source(weight, found)
        replace(node.outputs[0], weight)
