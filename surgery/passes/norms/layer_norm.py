"""Layer normalization becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.norms import affine, mean, scaled, shifted, squared
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Norm:
    """One normalization: its input, weight and bias, and its result `end`."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    epsilon: float
    end: ir.Value


class LayerNorm(NodePass[Norm]):
    """Nine nodes of layer normalization become one.

    before  d = x - ReduceMean(x, -1) ; d / Sqrt(ReduceMean(d ** 2, -1) + epsilon) * weight + bias
    after   LayerNormalization(x, weight, bias)
    keeps   float32 statistics (stash_type 1); the sums may be taken in another order
    not     a mean over other axes than the last; a weight that is not of rank 1
    why     one pass over memory instead of nine, and the form that skip_layer_norm starts from
    """

    name = "layer_norm"
    needs = ("dims", "fold", "noop")
    anchors = ("Sub",)

    def match(self, node: ir.Node, m: Matcher) -> Norm:
        """Walk from x - mean down to the scaling."""
        x, average = node.inputs
        assert x is not None
        m.check(mean(m.producer(average, "ReduceMean"), m) is x, "x minus its own mean", average)
        centred = node.outputs[0]
        squares = [n for n in centred.consumers() if n.op_type in ("Pow", "Mul")]
        means = [
            user
            for square in squares
            for user in square.outputs[0].consumers()
            if user.op_type == "ReduceMean"
        ]
        m.check(len(means) == 1, "one mean of squares", len(means))
        m.check(squared(mean(means[0], m), m) is centred, "squares of x - mean", "another value")
        normed, epsilon = scaled(means[0].outputs[0], centred, m)
        weight, end = affine(normed, m)
        bias, end = shifted(end) or (None, end)
        return Norm(x, weight, bias, epsilon, end)

    def rewrite(self, node: ir.Node, found: Norm, add: Builder) -> None:
        """Put one node in place of nine."""
        inputs = [found.x, found.weight, *([found.bias] if found.bias is not None else [])]
        attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
        out = add("LayerNormalization", inputs, attributes, like=found.end)
        replace(found.end, out)
