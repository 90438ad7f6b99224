"""Rotary embedding with one position axis becomes one node each for queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.rotary import (
    Op,
    Rotation,
    batched,
    layout,
    once,
    rotate,
    rotation,
    twice,
    unsqueezed,
)
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant


@dataclass(frozen=True)
class Rotated:
    """A rotation by one position axis.

    Attributes:
        rotation: what is rotated.
        cos: rows of cosines, `[rows, D/2]`; `sin` likewise.
        sin: see `cos`.
        position: row of each token, `[B, S]`; None if row i belongs to token i.
    """

    rotation: Rotation
    cos: ir.Value | np.ndarray
    sin: ir.Value | np.ndarray
    position: ir.Value | None


class Rotary(NodePass[Rotated]):
    """Rotary embedding becomes one node for queries and one for keys.

    before  x * cos + turn(x) * sin, turn(x) = concat(-x2, x1) or pairs (-x[1], x[0], ...) ;
            cos = Unsqueeze(Concat(c, c)) ; x whole heads or their first columns
    after   RotaryEmbedding(x, position, cos table, sin table) where c = Gather(table, position) ;
            RotaryEmbedding(x, [0], c, s) where c [P, D/2] is constant, or where x are packed
            rows [P, N, D], then one batch row
    keeps   the angles: those of the table, or the call's own cosines and sines as a table
    not     x with a batch axis and computed angles; angles whose two copies differ
    why     7 nodes for each rotation, each a pass over memory, become one
    """

    name = "rotary"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Concat",)

    def match(self, node: ir.Node, m: Matcher) -> Rotated:
        """A rotation whose angles are looked up, constant, or one row a token of one batch row."""
        found = rotation(node, m)
        m.rank(found.x, 3, 4)
        shape = found.whole.shape
        assert shape is not None
        m.check(isinstance(shape[1], int), "a known number of heads", shape)
        if len(shape) == 4 and constant(found.cos) is not None:
            return fixed(found, m)
        cos, sin = (once(unsqueezed(v, m), m, found.interleaved) for v in (found.cos, found.sin))
        if len(shape) == 3:
            return rows(found, cos, sin, m)
        return looked_up(found, cos, sin, m)

    def rewrite(self, node: ir.Node, found: Rotated, add: Builder) -> None:
        """Rotate all heads of a token at once."""
        tables = [
            add.constant(v, f"{name}_rows") if isinstance(v, np.ndarray) else v
            for name, v in (("cos", found.cos), ("sin", found.sin))
        ]
        start = found.position
        if start is None:
            start = add.constant(np.array([0], np.int64), "position_0")

        def op(x: ir.Value, layout: dict[str, object]) -> ir.Value:
            at = batched(start, x, add) if found.position is not None else start
            inputs = [x, at, *tables]
            return add("RotaryEmbedding", inputs, layout, domain="com.microsoft", like=x)

        turn = found.rotation
        assert turn.whole.shape is not None
        (rotate if len(turn.whole.shape) == 4 else rotate_rows)(turn, op, add)


def looked_up(found: Rotation, cos: ir.Value, sin: ir.Value, m: Matcher) -> Rotated:
    """Cosines and sines of positions `[B, S]`."""
    first, second = m.producer(cos, "Gather"), m.producer(sin, "Gather")
    table, position = first.inputs
    assert table is not None and position is not None and second.inputs[0] is not None
    m.check(second.inputs[1] is position, "the same positions for both", second.inputs[1])
    axes = [node.attributes.get_int("axis", 0) for node in (first, second)]
    m.check(axes == [0, 0], "rows of a table", axes)
    m.rank(table, 2)
    m.rank(second.inputs[0], 2)
    m.rank(position, 2)
    return Rotated(found, table, second.inputs[0], position)


def fixed(found: Rotation, m: Matcher) -> Rotated:
    """Constant cosines and sines `[1, P, D]` of P positions, the same for every batch row."""
    assert found.whole.shape is not None
    positions = found.whole.shape[2]
    tables = []
    for value in (found.cos, found.sin):
        table = m.constant(value, "constant angles for both")
        leading = table.shape[:-2]
        m.check(all(n == 1 for n in leading), "the same angles for every head", table.shape)
        fits = table.shape[-2:] == (positions, found.width)
        m.check(fits, f"angles of all {positions} positions", table.shape)
        m.check(twice(table, found.interleaved), "the same angles twice", "others")
        table = table.reshape(-1, found.width)
        tables.append(table[:, ::2] if found.interleaved else table[:, : found.width // 2])
    return Rotated(found, tables[0], tables[1], None)


def rows(found: Rotation, cos: ir.Value, sin: ir.Value, m: Matcher) -> Rotated:
    """One row of angles for each packed row."""
    m.rank(cos, 2)
    m.rank(sin, 2)
    return Rotated(found, cos, sin, None)


def rotate_rows(found: Rotation, op: Op, add: Builder) -> None:
    """Rotate packed rows `[P, N, D]` as one batch row."""
    whole = found.whole
    assert whole.shape is not None
    p, heads, head = whole.shape
    assert isinstance(heads, int) and isinstance(head, int)
    width = heads * head
    flat = add.constant(np.array([1, -1, width], np.int64), f"one_row_of_{width}")
    split = add.constant(np.array([-1, heads, head], np.int64), "split_heads")
    x = add("Reshape", [whole, flat], dtype=whole.dtype, shape=(1, p, width))
    out = op(x, layout(found))
    replace(found.joined, add("Reshape", [out, split], like=whole))
