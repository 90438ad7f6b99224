"""Attention inside the segments of a packed row, without a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.passes.attention.segments import Segments, alike_branch, loop_branch, segments
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Packed:
    """One attention over a packed row."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    """`[P, N, D]`."""
    ends: ir.Value
    """Where segments end, `[1, segments]` int64."""
    heads: int
    width: int
    scale: float
    end: ir.Value
    """The result, `[P, N * D]`."""


class PackedAttention(NodePass[Packed]):
    """Masked attention over a packed row of segments becomes attention inside each segment.

    before  Attention(q, k, v [1, N, P, D], segment(i) == segment(j)), a mask of P x P
    after   If(all segments are of one length): MultiHeadAttention over [segments, length, N * D] ;
            else: Loop over segments of MultiHeadAttention
    keeps   values up to the order of sums, for any number of segments of any lengths in a call
    not     a mask other than the equality of one segment index, which counts segment boundaries
    why     scores between segments are neither computed nor stored; a call with one picture,
            equal pictures or the frames of a video is one batched attention
    upstream microsoft/onnxruntime#33873
    """

    name = "packed_attention"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Attention",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.shared: dict[tuple[ir.Value, int], Segments] = {}

    def match(self, node: ir.Node, m: Matcher) -> Packed:
        """From heads back to packed rows, from the mask back to the boundaries."""
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        ends = boundaries(mask, m)
        rows = [packed_rows(value, m) for value in node.inputs[:3]]
        shape = rows[0].shape
        assert shape is not None
        heads, width = shape[1], shape[2]
        known = isinstance(heads, int) and isinstance(width, int)
        m.check(known, "known heads and head width", shape)
        assert isinstance(heads, int) and isinstance(width, int)
        own = node.attributes.get_int("is_causal", 0), node.attributes.get_float("softcap", 0.0)
        m.check(own == (0, 0.0), "attention that is neither causal nor capped", own)
        scale = node.attributes.get_float("scale", 0.0)  # 0 means 1 / sqrt(head width) in both ops
        end = m.user(m.user(node.outputs[0], "Transpose").outputs[0], "Reshape").outputs[0]
        m.rank(end, 2)
        return Packed(rows[0], rows[1], rows[2], ends, heads, width, scale, end)

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.shared.clear()

    def rewrite(self, node: ir.Node, found: Packed, add: Builder) -> None:
        """Add an `If` with both branches in place of the attention."""
        columns = found.heads * found.width
        key = (found.ends, columns)
        if key not in self.shared:
            # onnxruntime assumes that axes of one name have one length
            name = f"segments_{len(self.shared)}" if self.shared else "segments"
            self.shared[key] = segments(found.ends, columns, name, add)
        shared = self.shared[key]
        flat = add.constant(np.array([1, -1, columns], np.int64), f"one_row_of_{columns}")
        rows = found.query.shape[0] if found.query.shape is not None else None
        q, k, v = (
            add("Reshape", [value, flat], dtype=value.dtype, shape=(1, rows, columns))
            for value in (found.query, found.key, found.value)
        )
        attributes: dict[str, object] = {"num_heads": found.heads, "scale": found.scale}
        branches = {
            "then_branch": alike_branch(q, k, v, shared, attributes, add),
            "else_branch": loop_branch(q, k, v, shared, attributes, columns, add),
        }
        out = add("If", [shared.alike], branches, like=q)
        shape = add.constant(np.array([-1, columns], np.int64), f"rows_of_{columns}")
        replace(found.end, add("Reshape", [out, shape], like=found.end))


def boundaries(mask: ir.Value | None, m: Matcher) -> ir.Value:
    """The segment ends `[1, segments]` that a mask of equal segment indexes is computed from.

    The index of a position is the number of ends at or below it. It never decreases along the row,
    so segments are contiguous and slicing them out is correct.
    """
    equal = m.producer(mask, "Equal")
    down, across = (m.producer(value, "Unsqueeze") for value in equal.inputs)
    index = down.inputs[0]
    m.check(across.inputs[0] is index, "one segment index on both sides", across.inputs[0])
    axes = [int(m.constant(u.inputs[1]).item()) for u in (down, across)]
    m.check(sorted(axes) == [0, 1], "rows against columns", axes)
    count = m.producer(index, "ReduceSum")
    over = m.constant(count.inputs[1]).ravel().tolist()
    m.check(over in ([-1], [1]), "a count over boundaries", over)
    reached = m.producer(m.producer(count.inputs[0], "Cast").inputs[0], "GreaterOrEqual")
    position = m.producer(m.producer(reached.inputs[0], "Unsqueeze").inputs[0], "Range")
    first, step = m.constant(position.inputs[0]), m.constant(position.inputs[2])
    m.check(first == 0 and step == 1, "positions 0, 1, 2, ...", (first, step))
    ends = reached.inputs[1]
    assert ends is not None
    m.rank(ends, 2)
    return ends


def packed_rows(value: ir.Value | None, m: Matcher) -> ir.Value:
    """The packed rows `[P, N, D]` that heads `[1, N, P, D]` come from."""
    lifted = m.producer(value, "Unsqueeze")
    axis = m.constant(lifted.inputs[1]).ravel().tolist()
    m.check(axis == [0], "a batch axis of 1 in front", axis)
    moved = m.producer(lifted.inputs[0], "Transpose")
    perm = moved.attributes.get_ints("perm", ())
    m.check(list(perm) == [1, 0, 2], "heads moved to the front", perm)
    rows = moved.inputs[0]
    assert rows is not None
    m.rank(rows, 3)
    return rows
