"""A residual addition and the layer normalization of the sum become one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from surgery.match.shapes import same_dim, same_shape
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher
from surgery.rewrite.scope import place


@dataclass(frozen=True)
class Skip:
    """The operands of a residual addition, and its sum."""

    a: ir.Value
    b: ir.Value
    total: ir.Value


class SkipNorm(NodePass[Skip]):
    """What both residual norms share: an `Add` whose sum a norm reads."""

    op: ClassVar[str]

    def match(self, node: ir.Node, m: Matcher) -> Skip:
        """A sum of equal shapes, or one that broadcasts over the batch, and a norm of it."""
        total = node.inputs[0]
        add = m.producer(total, "Add")
        a, b = add.inputs[:2]
        assert a is not None and b is not None and total is not None
        if repeats(b, a):
            a, b = b, a
        fits = same_shape(a, b) or repeats(a, b)
        m.check(fits, "a sum of equal shapes, or of one for every batch row", shapes(a, b))
        m.rank(a, 2, 3)
        axis = node.attributes.get_int("axis", -1)
        m.check(axis in (-1, len(a.shape or ()) - 1), "a norm over the last axis", axis)
        m.check(add.graph is node.graph, "both in one graph", "two graphs")
        computed = [v.name for v in node.inputs[1:] if v is not None and v.producer() is not None]
        m.check(not computed, "a weight that is not computed", computed)
        width = a.shape[-1] if a.shape is not None else None
        rows = [list(v.shape) if v.shape else [] for v in node.inputs[1:] if v is not None]
        m.check(all(row == [width] for row in rows), f"weights of shape [{width}]", rows)
        first = next(user for user in total.consumers() if user.op_type == node.op_type)
        m.check(first is node, "a sum that is not fused with another norm", place(first))
        return Skip(a, b, total)

    def rewrite(self, node: ir.Node, found: Skip, add: Builder) -> None:
        """Add one node with two outputs: the norm, and the sum for the next residual."""
        inputs = [found.a, found.b, *node.inputs[1:]]
        total = found.total.producer()
        assert total is not None
        add.before = total  # other readers of the sum may stand before the norm
        epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
        fused = add.node(self.op, inputs, epsilon, domain="com.microsoft", outputs=4)
        pairs = ((fused.outputs[0], node.outputs[0]), (fused.outputs[3], found.total))
        for new, old in pairs:
            new.type, new.shape = ir.TensorType(old.dtype or ir.DataType.FLOAT), old.shape
            replace(old, new)


def repeats(a: ir.Value, b: ir.Value) -> bool:
    """Whether `b [1, S, H]` or `[S, H]` is added to every batch row of `a [B, S, H]`."""
    if a.shape is None or b.shape is None or len(a.shape) != 3 or a.shape == b.shape:
        return False
    leading = list(b.shape[:-2])
    pairs = list(zip(a.shape[1:], b.shape[-2:], strict=False))
    return leading in ([], [1]) and len(pairs) == 2 and all(same_dim(x, y) for x, y in pairs)


def shapes(*values: ir.Value) -> str:
    """Shapes, for a message."""
    return " and ".join(str(value.shape) for value in values)


class SkipLayerNorm(SkipNorm):
    """Residual addition and layer normalization become one node.

    before  h = a + b ; LayerNormalization(h, weight, bias) ; h read again later
    after   SkipLayerNormalization(a, b, weight, bias) -> norm, -, -, h
    keeps   the sum as a value of its own, rounded the same
    not     sums that broadcast other than over the batch; weights that a node computes, or of
            another shape than [H], which onnxruntime refuses
    why     the sum is normalized while it is in cache, on GPUs; onnxruntime's kernel for the CPU
            takes more than 3 times as long as both nodes in float32, so that vision towers for a
            CPU go without
    """

    name = "skip_layer_norm"
    anchors = ("LayerNormalization",)
    op = "SkipLayerNormalization"
