"""RMS normalization as one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, replace
from surgery.rope import other


@dataclass(frozen=True)
class Norm:
    """One normalization: what goes in, what scales it, where it ends."""

    x: ir.Value
    weight: ir.Value
    epsilon: float
    end: ir.Value


class RmsNorm(NodePass[Norm]):
    """Six nodes of RMS normalization become one.

    before  x * Reciprocal(Sqrt(ReduceMean(x ** 2, -1) + epsilon)) * weight
    after   RMSNormalization(x, weight), or onnxruntime's own SimplifiedLayerNormalization
    keeps   float32 statistics (stash_type 1); the sum of squares may be taken in another order
    not     a mean over other axes than the last; a weight that is not one row
    why     one pass over memory instead of six, and the form that skip_rms_norm starts from
    """

    name = "rms_norm"
    anchors = ("ReduceMean",)

    def __init__(self, op: str = "RMSNormalization") -> None:
        """Choose the op.

        Args:
            op: ONNX's since opset 23, or "SimplifiedLayerNormalization", the same under the name
                that providers have long had a kernel for.
        """
        super().__init__()
        self.op = op

    def match(self, node: ir.Node, m: Matcher) -> Norm:
        """Walk from the mean up to x and down to the scaling."""
        square = m.producer(node.inputs[0], "Pow", "Mul")
        x, power = square.inputs[:2]
        assert x is not None
        if square.op_type == "Pow":
            exponent = m.constant(power, "a constant exponent")
            m.check(exponent.size == 1 and exponent.item() == 2.0, "an exponent of 2", exponent)
        else:
            m.check(power is x, "x * x", "a product of two values")
        axes = m.constant(node.inputs[1], "constant axes").ravel().tolist()
        last = [-1] if x.shape is None else [-1, len(x.shape) - 1]
        m.check(len(axes) == 1 and axes[0] in last, "the mean over the last axis", axes)
        m.check(node.attributes.get_int("keepdims", 1) == 1, "keepdims=1", 0)

        total = m.user(node.outputs[0], "Add")
        epsilon = m.constant(other(total, node.outputs[0]), "a constant epsilon")
        m.check(epsilon.size == 1, "a constant epsilon, one number", epsilon)
        root = m.user(total.outputs[0], "Sqrt")
        inverse = m.user(root.outputs[0], "Reciprocal")
        normed = m.user(inverse.outputs[0], "Mul")
        m.check(x in normed.inputs, f"{x.name} scaled by its own norm", "another value")
        scaled = m.user(normed.outputs[0], "Mul")
        weight = other(scaled, normed.outputs[0])
        m.rank(weight, 1)
        return Norm(x, weight, float(epsilon.item()), scaled.outputs[0])

    def rewrite(self, node: ir.Node, found: Norm, add: Builder) -> None:
        """One node in place of six."""
        attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
        inputs = [found.x, found.weight]
        replace(found.end, add(self.op, inputs, attributes, like=found.end))
