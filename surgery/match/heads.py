"""Attention heads as exporters write them: split from rows, moved to the front, merged again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.matcher import Matcher


def split(value: ir.Value | None, m: Matcher) -> tuple[ir.Value, int]:
    """The rows that heads `[B, N, S, D]` were split from, and the number of heads.

    The rows are `[B, S, N * D]`, or `[B, S, N, D]` where an op such as a norm stands between the
    split and the transpose.
    """
    moved = m.producer(value, "Transpose")
    perm = moved.attributes.get_ints("perm", ())
    m.check(list(perm) == [0, 2, 1, 3], "heads moved to the front", perm)
    rows = moved.inputs[0]
    assert rows is not None and value is not None
    m.rank(rows, 4)
    heads = value.shape[1] if value.shape is not None else None
    m.check(isinstance(heads, int), "a known number of heads", value.shape)
    assert isinstance(heads, int)
    made = rows.producer()
    before = made.inputs[0] if made is not None and made.op_type == "Reshape" else None
    if before is not None and before.shape is not None and len(before.shape) == 3:
        return before, heads
    return rows, heads


def flat(rows: ir.Value, add: Builder) -> ir.Value:
    """Rows as `[B, S, N * D]`; a Reshape is added if they are `[B, S, N, D]`."""
    if rows.shape is None or len(rows.shape) == 3:
        return rows
    b, s, n, d = rows.shape
    width = n * d if isinstance(n, int) and isinstance(d, int) else None
    shape = add.constant(np.array([0, 0, -1], np.int64), "flat_heads")
    return add("Reshape", [rows, shape], dtype=rows.dtype, shape=(b, s, width))


def merged(value: ir.Value, m: Matcher) -> ir.Value:
    """The value `[B, S, N * D]` that heads `[B, N, S, D]` are merged into."""
    end = m.user(m.user(value, "Transpose").outputs[0], "Reshape").outputs[0]
    m.rank(end, 3)
    return end
