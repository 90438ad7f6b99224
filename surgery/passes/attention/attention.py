"""Attention written out, as one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.rotary import other
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant

LOWEST = -1e4
"""A number at or below this, added to a score, hides it."""


@dataclass(frozen=True)
class Written:
    """One attention, `[B, N, S, D]`.

    Attributes:
        query: as it enters the product of scores; `key` and `value` with K heads, N a multiple.
        key: see `query`; `[B, T, N, D]` where `moved`.
        moved: the heads of the keys still have to move to the front.
        value: see `query`.
        mask: bool, or float to be added; None without.
        scale: of the scores.
        softcap: 0 without.
        end: the result.
    """

    query: ir.Value
    key: ir.Value
    moved: bool
    value: ir.Value
    mask: ir.Value | None
    scale: float
    softcap: float
    end: ir.Value


class Attention(NodePass[Written]):
    """Attention in its parts becomes one node.

    before  MatMul(Softmax(scale * MatMul(q, Transpose(k)) + mask), v), keys and values repeated
            over their heads or not, the scores capped by c * Tanh(scores / c) or not
    after   Attention(q, k, v, mask)
    keeps   the mask; where it is Where(bool, 0, lowest) its bool, so that passes can read it
    not     opset before 23; a cap together with a mask of numbers; scores read by something else
    why     the form that group_query_attention, multi_head_attention and packed_attention
            match
    """

    name = "attention"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Softmax",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Start without masks."""
        super().__init__(expect=expect)
        self.masks: dict[ir.Value, ir.Value] = {}

    def forget(self) -> None:
        """Drop what was learnt of a graph."""
        self.masks.clear()

    def match(self, node: ir.Node, m: Matcher) -> Written:
        """Up to queries and keys, down to values."""
        assert isinstance(node.graph, ir.Graph)
        opset = node.graph.opset_imports.get("", 0)
        scores = node.inputs[0]
        assert scores is not None
        m.check(node.attributes.get_int("axis", -1) in (-1, 3), "a softmax over keys", node)
        m.rank(scores, 4)
        out = m.user(node.outputs[0], "MatMul")
        m.check(out.inputs[0] is node.outputs[0], "weights times values", "values times weights")
        mask, scores = masked(scores, m)
        cap, scores = capped(scores, m)
        scale, product = scaled(scores, m)
        query, turned = product.inputs
        assert query is not None and out.inputs[1] is not None
        factor, query = factored(query)
        other_factor, turned = factored(turned)
        key, moved = keys(turned, m)
        whole = key, out.inputs[1]
        key, value = whole if moved else map(repeated, whole)
        axis = 2 if moved else 1
        if key.shape is None or value.shape is None or key.shape[axis] != value.shape[1]:
            key, value = whole  # only one of them was repeated
        m.rank(query, 4)
        m.check(opset >= 23, "opset 23, which has Attention", opset)
        m.check(cap == 0.0 or mask is None or mask.dtype == ir.DataType.BOOL,
                "a mask of bool beside a cap", mask)  # fmt: skip
        scale *= factor * other_factor
        return Written(query, key, moved, value, mask, scale, cap, out.outputs[0])

    def rewrite(self, node: ir.Node, found: Written, add: Builder) -> None:
        """One node where the product with the values stands."""
        end = found.end.producer()
        assert end is not None
        add.before = end
        key = found.key
        if found.moved:
            b, t, n, d = key.shape or (None,) * 4
            perm = {"perm": [0, 2, 1, 3]}
            key = add("Transpose", [key], perm, dtype=key.dtype, shape=(b, n, t, d))
        inputs = [found.query, key, found.value]
        if found.mask is not None:
            if found.mask not in self.masks:
                self.masks[found.mask] = spread(found.mask, found.query, add)
            inputs.append(self.masks[found.mask])
        attributes: dict[str, object] = {"scale": found.scale, "is_causal": 0}
        if found.softcap:
            attributes["softcap"] = found.softcap
        replace(found.end, add("Attention", inputs, attributes, like=found.end))


def spread(mask: ir.Value, query: ir.Value, add: Builder) -> ir.Value:
    """A mask with a row for each query: onnxruntime's `Attention` takes no other."""
    shape, rows = mask.shape, query.shape[2] if query.shape is not None else None
    if shape is None or len(shape) < 2 or shape[-2] != 1 or rows == 1:
        return mask
    one = add.constant(np.array([1], np.int64), "one")
    length = add("Shape", [query], {"start": 2, "end": 3}, dtype=ir.DataType.INT64, shape=[1])
    wide = add("Concat", [length, one], {"axis": 0}, dtype=ir.DataType.INT64, shape=[2])
    dims = (*shape[:-2], rows, shape[-1])
    return add("Expand", [mask, wide], dtype=mask.dtype, shape=dims)


def masked(scores: ir.Value, m: Matcher) -> tuple[ir.Value | None, ir.Value]:
    """What is added to the scores, and the scores before."""
    node = m.producer(scores, "Add", "Mul", "Div", "MatMul")
    if node.op_type != "Add":
        return None, scores
    a, b = node.inputs
    assert a is not None and b is not None
    made = a.producer()
    mask, before = (b, a) if made and made.op_type in ("Mul", "Div", "MatMul") else (a, b)
    choice = mask.producer()
    if choice is not None and choice.op_type == "Where":
        shown, hidden = constant(choice.inputs[1]), constant(choice.inputs[2])
        plain = shown is not None and hidden is not None and not shown.any()
        if plain and hidden is not None and bool(np.all(hidden <= LOWEST)):
            assert choice.inputs[0] is not None
            return choice.inputs[0], before
    return mask, before


def capped(scores: ir.Value, m: Matcher) -> tuple[float, ir.Value]:
    """The cap of c * Tanh(scores / c), 0 without, and the scores before."""
    node = scores.producer()
    if node is None or node.op_type != "Mul":
        return 0.0, scores
    for value in node.inputs:
        bent = value.producer() if value is not None else None
        if value is None or bent is None or bent.op_type != "Tanh":
            continue
        cap = m.constant(other(node, value), "a constant cap")
        inner = m.producer(bent.inputs[0], "Div")
        by = m.constant(inner.inputs[1], "a constant cap")
        m.check(cap.size == 1 and by.size == 1 and cap.item() == by.item(), "one cap", (cap, by))
        assert inner.inputs[0] is not None
        return float(cap.item()), inner.inputs[0]
    return 0.0, scores


def scaled(scores: ir.Value, m: Matcher) -> tuple[float, ir.Node]:
    """The factor on a product of queries and keys, and the product."""
    factor, value = factored(scores)
    return factor, m.producer(value, "MatMul")


def factored(value: ir.Value | None) -> tuple[float, ir.Value]:
    """A constant factor on a value, 1 without, and the value before."""
    assert value is not None
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return 1.0, value
    for one, two in (node.inputs[:2], node.inputs[1::-1]):
        numbers = constant(two)
        if one is not None and numbers is not None and numbers.size == 1:
            if node.op_type == "Mul":
                return float(numbers.item()), one
            if two is node.inputs[1]:
                return 1 / float(numbers.item()), one
    return 1.0, value


def keys(turned: ir.Value, m: Matcher) -> tuple[ir.Value, bool]:
    """Keys behind `[B, N, D, T]`: `[B, N, T, D]`, or `[B, T, N, D]` where heads move too."""
    node = m.producer(turned, "Transpose")
    perm = list(node.attributes.get_ints("perm", ()))
    m.check(perm in ([0, 1, 3, 2], [0, 2, 3, 1]), "keys turned for the product", perm)
    assert node.inputs[0] is not None
    return node.inputs[0], perm == [0, 2, 3, 1]


def repeated(value: ir.Value) -> ir.Value:
    """Heads before each was repeated, or the value itself."""
    flat = value.producer()
    spread = flat.inputs[0].producer() if flat and flat.op_type == "Reshape" else None  # type: ignore[union-attr]
    lifted = spread.inputs[0].producer() if spread and spread.op_type == "Expand" else None  # type: ignore[union-attr]
    if lifted is None or lifted.op_type != "Unsqueeze" or lifted.inputs[0] is None:
        return value
    axis, source = constant(lifted.inputs[1]), lifted.inputs[0]
    before, after = source.shape, value.shape
    if axis is None or axis.ravel().tolist() != [2] or before is None or after is None:
        return value
    same = len(before) == len(after) == 4 and all(before[i] == after[i] for i in (0, 2, 3))
    return source if same else value
