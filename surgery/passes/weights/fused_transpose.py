"""A tied output projection reads the embedding table without transposing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Turned:
    """A product with a transposed weight."""

    x: ir.Value
    weight: ir.Value


class FusedTranspose(NodePass[Turned]):
    """A product with a transposed weight reads the weight untransposed.

    before  MatMul(x, Transpose(weight [V, H]))
    after   FusedMatMul(x, weight [V, H], transB=1)
    keeps   the weight in the layout of the checkpoint
    not     weights that are not shared: weight_transpose stores those in the layout of MatMul
    why     the embedding graph reads the same table row by row, so the package stores it once
    """

    name = "fused_transpose"
    anchors = ("MatMul",)

    def __init__(self, shared: Callable[[str], bool], *, expect: int | None = None) -> None:
        """Choose the weights.

        Args:
            shared: whether another graph reads the weight of this name too.
        """
        super().__init__(expect=expect)
        self.shared = shared

    def match(self, node: ir.Node, m: Matcher) -> Turned:
        """A transposed initializer that is shared."""
        x = node.inputs[0]
        turned = m.producer(node.inputs[1], "Transpose")
        weight = turned.inputs[0]
        assert x is not None and weight is not None
        m.check(weight.is_initializer(), "an initializer", weight.name)
        m.rank(weight, 2)
        perm = turned.attributes.get_ints("perm", (1, 0))
        m.check(list(perm) == [1, 0], "axes swapped", perm)
        m.check(self.shared(weight.name or ""), "a shared weight", weight.name)
        return Turned(x, weight)

    def rewrite(self, node: ir.Node, found: Turned, add: Builder) -> None:
        """Add one node that reads the weight untransposed."""
        out = node.outputs[0]
        inputs = [found.x, found.weight]
        fused = add("FusedMatMul", inputs, {"transB": 1}, domain="com.microsoft", like=out)
        replace(out, fused)
