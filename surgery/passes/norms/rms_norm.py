"""RMS normalization becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.norms import affine, mean, scaled, squared
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Norm:
    """One normalization: its input and weight, and its result `end`."""

    x: ir.Value
    weight: ir.Value
    epsilon: float
    end: ir.Value


class RmsNorm(NodePass[Norm]):
    """Six nodes of RMS normalization become one.

    before  x * Reciprocal(Sqrt(ReduceMean(x ** 2, -1) + epsilon)) * weight, or with a power in
            place of the root ; or RMSNormalization, to be replaced by the other op
    after   RMSNormalization(x, weight), or onnxruntime's own SimplifiedLayerNormalization
    keeps   float32 statistics (stash_type 1); the sum of squares may be taken in another order
    not     a mean over other axes than the last; a weight that is not of rank 1
    why     one pass over memory instead of six, and the form that skip_rms_norm starts from
    """

    name = "rms_norm"
    needs = ("dims", "fold", "noop")
    anchors = ("ReduceMean", "RMSNormalization")

    def __init__(self, op: str = "RMSNormalization", *, expect: int | None = None) -> None:
        """Choose the op.

        Args:
            op: "RMSNormalization" of ONNX (opset 23), or "SimplifiedLayerNormalization" of
                onnxruntime, which computes the same and has kernels in more providers.
        """
        super().__init__(expect=expect)
        self.op = op

    def match(self, node: ir.Node, m: Matcher) -> Norm:
        """From the mean up to x and down to the product with the weight."""
        if node.op_type == "RMSNormalization":
            return self.renamed(node, m)
        square = node.inputs[0]
        assert square is not None
        x = squared(square, m)
        mean(node, m)
        normed, epsilon = scaled(node.outputs[0], x, m)
        weight, end = affine(normed, m)
        return Norm(x, weight, epsilon, end)

    def renamed(self, node: ir.Node, m: Matcher) -> Norm:
        """A norm that is already one node, of the other op."""
        x, weight = node.inputs
        assert x is not None and weight is not None
        m.check(self.op != node.op_type, f"another op than {self.op}", node.op_type)
        axis = node.attributes.get_int("axis", -1)
        m.check(axis in (-1, len(x.shape or ()) - 1), "a norm over the last axis", axis)
        return Norm(x, weight, node.attributes.get_float("epsilon", 1e-5), node.outputs[0])

    def rewrite(self, node: ir.Node, found: Norm, add: Builder) -> None:
        """Put one node in place of six."""
        attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
        inputs = [found.x, found.weight]
        replace(found.end, add(self.op, inputs, attributes, like=found.end))
