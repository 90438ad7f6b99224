"""A product with a weight on the left, as one with the weight on the right."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.weights import source_of


@dataclass(frozen=True)
class Turned:
    """A product `weight [N, K] @ x [..., K, M]`; where `moved`, the weight is stored `[K, N]`."""

    weight: ir.Value
    moved: bool
    x: ir.Value


class RightWeight(NodePass[Turned]):
    """The weight moves to the right of its product, where it can be quantized.

    before  MatMul(weight [N, K], x [..., K, M])
    after   Transpose(MatMul(Transpose(x), Transpose(weight))), the last two axes swapped
    keeps   values up to the order of sums ; the weight's name
    not     a left operand that is computed, or of another rank than 2 ; two weights
    why     matmul_nbits multiplies rows by a weight; models in the layout of convolutions, or with
            hidden states [H, S], have the weight in front
    """

    name = "right_weight"
    needs = ("dims", "fold", "noop")
    anchors = ("MatMul",)

    def match(self, node: ir.Node, m: Matcher) -> Turned:
        """A stored matrix, or its transpose, times something computed."""
        left, x = node.inputs
        assert left is not None and x is not None
        made = left.producer()
        moved = made is not None and made.op_type == "Transpose" and made.inputs[0] is not None
        weight = made.inputs[0] if moved and made is not None else left
        assert weight is not None
        stored = weight.is_initializer() and source_of(weight) is not None
        m.check(stored, "a weight on the left", left.name)
        m.rank(weight, 2)
        m.check(not x.is_initializer(), "a computed right operand", x.name)
        known = x.shape is not None and len(x.shape) >= 2
        m.check(known, f"{x.name} of a known rank of 2 or more", x.shape)
        return Turned(weight, moved, x)

    def rewrite(self, node: ir.Node, found: Turned, add: Builder) -> None:
        """Swap both operands and the last two axes of everything."""
        out, weight = node.outputs[0], found.weight
        assert found.x.shape is not None and weight.shape is not None
        *outer, k, rows = found.x.shape
        perm = swapped(len(found.x.shape))
        n = weight.shape[1 if found.moved else 0]
        x = add("Transpose", [found.x], perm, dtype=found.x.dtype, shape=(*outer, rows, k))
        if not found.moved:
            axes = {"perm": [1, 0]}
            weight = add("Transpose", [weight], axes, dtype=weight.dtype, shape=(k, n))
        made = add("MatMul", [x, weight], dtype=out.dtype, shape=(*outer, rows, n))
        replace(out, add("Transpose", [made], perm, like=out))


def swapped(rank: int) -> dict[str, list[int]]:
    """The attribute of a Transpose that swaps the last two axes."""
    return {"perm": [*range(rank - 2), rank - 1, rank - 2]}
