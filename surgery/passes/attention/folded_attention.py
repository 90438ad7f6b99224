"""Attention over heads that share an axis with the batch becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.folded import Folded, folded, heads_in, joined_again
from surgery.match.lengths import spelled
from surgery.match.scores import scaled
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Together:
    """One attention whose batch and heads are one axis.

    Attributes:
        query: where the queries come from; `key` and `value` alike.
        key: see `query`.
        value: see `query`.
        scale: of the scores.
        end: rows of the result.
        positions: whether positions come first in them.
    """

    query: Folded
    key: Folded
    value: Folded
    scale: float
    end: ir.Value
    positions: bool


class FoldedAttention(NodePass[Together]):
    """Attention over heads that share an axis with the batch becomes one node.

    before  MatMul(Softmax(scale * MatMul(q [B * N, S, D], k [B * N, D, T])), v [B * N, T, D]), each
            made of rows [B, S, N * D] or [S, B, N * D], and made into such rows again
    after   Attention(q [B, N, S, D], k, v), rows with the batch in front around it
    keeps   values up to the order of sums; where the numbers come from is followed axis by axis
    not     opset before 23; masks; heads that are not read off rows
    why     torch's MultiheadAttention and older models write it so; the form that
            multi_head_attention matches
    """

    name = "folded_attention"
    needs = ("shapes", "dims", "fold", "noop")
    anchors = ("Softmax",)

    def match(self, node: ir.Node, m: Matcher) -> Together:
        """From the softmax up to the rows of queries and keys, and down to those of the result."""
        assert isinstance(node.graph, ir.Graph)
        opset = node.graph.opset_imports.get("", 0)
        scores = node.inputs[0]
        assert scores is not None
        m.rank(scores, 3)
        m.check(node.attributes.get_int("axis", -1) in (-1, 2), "a softmax over keys", node)
        out = m.user(node.outputs[0], "MatMul")
        m.check(out.inputs[0] is node.outputs[0], "weights times values", "values times weights")
        scale, product = scaled(scores, m)
        query, key, value = *product.inputs, out.inputs[1]
        assert query is not None and key is not None and value is not None
        heads = heads_in(query)
        m.check(heads is not None, "a known number of heads", query.shape)
        assert heads is not None
        q, k, v = folded(query, heads), folded(key, heads, True), folded(value, heads)
        for word, part in (("queries", q), ("keys", k), ("values", v)):
            m.check(part is not None, f"{word} made of rows", "another layout")
        assert q is not None and k is not None and v is not None
        m.check(v.factor == 1, "values as they are", v.factor)
        ends = joined_again(out.outputs[0], (*q.lengths[:3], v.lengths[3]))
        m.check(ends is not None, "a result that becomes rows", out.outputs[0].name)
        m.check(opset >= 23, "opset 23, which has Attention", opset)
        assert ends is not None
        return Together(q, k, v, scale * q.factor * k.factor, *ends)

    def rewrite(self, node: ir.Node, found: Together, add: Builder) -> None:
        """Put the node in place of the rows of the result."""
        made = found.end.producer()
        assert made is not None
        add.before = made
        operands = [split(part, add) for part in (found.query, found.key, found.value)]
        attributes: dict[str, object] = {"scale": found.scale, "is_causal": 0}
        dtype = found.end.dtype
        batch, heads, length, _ = found.query.lengths
        width = found.value.lengths[3]
        shape = tuple(map(spelled, (batch, heads, length, width)))
        out = add("Attention", operands, attributes, dtype=dtype, shape=shape)
        b, n, s, d = shape
        assert isinstance(n, int) and isinstance(d, int)
        out = add("Transpose", [out], {"perm": [0, 2, 1, 3]}, dtype=dtype, shape=(b, s, n, d))
        rows = add.constant(np.array([0, 0, n * d], np.int64), f"rows_of_{n * d}")
        out = add("Reshape", [out, rows], dtype=dtype, shape=(b, s, n * d))
        if found.positions:
            out = add("Transpose", [out], {"perm": [1, 0, 2]}, dtype=dtype, shape=(s, b, n * d))
        if len(found.end.shape or ()) == 2:
            flat = add.constant(np.array([-1, n * d], np.int64), f"flat_rows_of_{n * d}")
            out = add("Reshape", [out, flat], like=found.end)
        replace(found.end, out)


def split(part: Folded, add: Builder) -> ir.Value:
    """Heads `[B, N, S, D]` from their rows."""
    b, n, s, d = map(spelled, part.lengths)
    rows, dtype = part.source, part.source.dtype
    if part.positions:
        width = rows.shape[2] if rows.shape is not None else None
        rows = add("Transpose", [rows], {"perm": [1, 0, 2]}, dtype=dtype, shape=(b, s, width))
    shape = add.constant(np.array([0, 0, n, -1], np.int64), f"split_{n}_heads_of_rows")
    heads = add("Reshape", [rows, shape], dtype=dtype, shape=(b, s, n, d))
    return add("Transpose", [heads], {"perm": [0, 2, 1, 3]}, dtype=dtype, shape=(b, n, s, d))
