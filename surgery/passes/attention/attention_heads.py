"""Heads of an attention as they come out of the projections, however they were moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.layout import Heads, heads_of
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Operands:
    """Where queries, keys and values come from."""

    query: Heads
    key: Heads
    value: Heads
    scale: float


class AttentionHeads(NodePass[Operands]):
    """An attention reads its heads in one way: rows split, then moved; none repeated.

    before  Attention(q, k, v) with heads behind any chain of Reshape, Transpose, Unsqueeze,
            Squeeze, Expand, Tile and factors: keys turned twice, repeat_kv, scales on either side
    after   Attention(Transpose(Reshape(x_q)), Transpose(Reshape(x_k)), Transpose(Reshape(x_v))),
            factors in its scale, keys and values with their own number of heads
    keeps   every score up to rounding; where the numbers come from is followed axis by axis
    not     keys and values repeated differently; movements that mix heads
    why     the form that group_query_attention and multi_head_attention start from
    """

    name = "attention_heads"
    needs = ("shapes", "dims", "fold", "noop")
    anchors = ("Attention",)

    def match(self, node: ir.Node, m: Matcher) -> Operands:
        """The rows of all three."""
        m.check(node.domain == "", "ONNX's own Attention", node.domain)
        found = [self.operand(value, m) for value in node.inputs[:3]]
        query, key, value = found
        m.check(query.repeats == 1, "queries that are not repeated", query.repeats)
        alike = key.repeats == value.repeats and key.heads == value.heads
        m.check(alike, "keys and values repeated alike", (key.repeats, value.repeats))
        m.check(value.factor == 1.0, "values that are not scaled", value.factor)
        width = node.inputs[0].shape[-1] if node.inputs[0].shape else 0  # type: ignore[union-attr]
        m.check(isinstance(width, int), "a known head width", width)
        assert isinstance(width, int)
        scale = node.attributes.get_float("scale", 0.0) or width**-0.5
        whole = Operands(query, key, value, scale * query.factor * key.factor)
        m.check(not self.settled(node, whole), "another way of writing it", "the usual one")
        return whole

    def operand(self, value: ir.Value | None, m: Matcher) -> Heads:
        """The rows of one operand."""
        assert value is not None
        m.rank(value, 4)
        found = heads_of(value)
        m.check(found is not None, f"{value.name} of known heads and lengths", value.shape)
        assert found is not None
        return found

    def settled(self, node: ir.Node, found: Operands) -> bool:
        """Whether the operands are written in the usual way already."""
        parts = (found.query, found.key, found.value)
        return all(usually(v, h) for v, h in zip(node.inputs[:3], parts, strict=True))

    def rewrite(self, node: ir.Node, found: Operands, add: Builder) -> None:
        """Write each operand anew."""
        for i, part in enumerate((found.query, found.key, found.value)):
            old = node.inputs[i]
            assert old is not None
            if not usually(old, part):
                node.replace_input_with(i, written(old, part, add))
        node.attributes["scale"] = ir.AttrFloat32("scale", found.scale)


def usually(value: ir.Value | None, found: Heads) -> bool:
    """Whether a value is made of its rows in the usual way."""
    if found.form == "heads":
        return value is found.source
    moved = value.producer() if value is not None else None
    if moved is None or moved.op_type != "Transpose":
        return False
    if list(moved.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
        return False
    rows = moved.inputs[0]
    if found.form == "rows":
        return rows is found.source
    split = rows.producer() if rows is not None else None
    return split is not None and split.op_type == "Reshape" and split.inputs[0] is found.source


def written(old: ir.Value, found: Heads, add: Builder) -> ir.Value:
    """Heads `[B, K, S, D]` from their rows."""
    assert old.shape is not None
    batch, _, length, width = old.shape
    rows = found.source
    if found.form == "heads":
        return rows
    if found.form == "joined":
        joined = rows.shape is not None and list(rows.shape[:2]) == [batch, length]
        # rows of one batch may have their heads split already: [S, N, D]
        sides, word = ((0, 0), "split") if joined else ((1, -1), "one_batch_of")
        shape = add.constant(
            np.array([*sides, found.heads, width], np.int64), f"{word}_{found.heads}_heads"
        )
        dims = (batch, length, found.heads, width)
        rows = add("Reshape", [rows, shape], dtype=old.dtype, shape=dims)
    perm = {"perm": [0, 2, 1, 3]}
    moved = (batch, found.heads, length, width)
    return add("Transpose", [rows], perm, dtype=old.dtype, shape=moved)
