"""Weights are stored in the layout in which they are used."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import Source, set_source, source_of, transposed


class WeightTranspose(NodePass[Source]):
    """A transposed weight becomes a weight in that layout.

    before  MatMul(x, Transpose(weight [N, K]))
    after   MatMul(x, weight [K, N]), transposed when the package is written ; stacks of matrices
            [E, N, K] too
    keeps   the weight's name and numbers
    not     a weight that another node reads untransposed
    why     onnxruntime would transpose at every load and hold both copies
    """

    name = "weight_transpose"
    anchors = ("Transpose",)

    def match(self, node: ir.Node, m: Matcher) -> Source:
        """The weight's new source."""
        weight = node.inputs[0]
        assert weight is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        m.rank(weight, 2, 3)
        perm = list(node.attributes.get_ints("perm", ()))
        swapped = [[], [1, 0]] if len(weight.shape or ()) == 2 else [[0, 2, 1]]
        m.check(perm in swapped, "the last two axes swapped", perm)
        source = source_of(weight)
        m.check(source is not None, "a weight of the checkpoint", weight.name)
        assert source is not None
        readers = [use.node.op_type for use in weight.uses()]
        alone = len(readers) == 1 and not weight.is_graph_output()
        m.check(alone, f"{weight.name} read by this Transpose alone", readers)
        return transposed(source)

    def rewrite(self, node: ir.Node, found: Source, add: Builder) -> None:
        """Change the weight and drop the transpose."""
        weight = node.inputs[0]
        assert weight is not None
        set_source(weight, found)
        replace(node.outputs[0], weight)
