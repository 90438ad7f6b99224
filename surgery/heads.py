"""Attention heads as exporters write them: split off, moved to the front, and back."""

from __future__ import annotations

import onnx_ir as ir

from surgery.contract import Matcher


def split(value: ir.Value | None, m: Matcher) -> tuple[ir.Value, int]:
    """`[B, S, N * D]` behind `[B, N, S, D]`, and the number of heads."""
    moved = m.producer(value, "Transpose")
    perm = moved.attributes.get_ints("perm", ())
    m.check(list(perm) == [0, 2, 1, 3], "heads moved to the front", perm)
    parted = m.producer(moved.inputs[0], "Reshape")
    flat = parted.inputs[0]
    assert flat is not None and value is not None
    m.rank(flat, 3)
    heads = value.shape[1] if value.shape is not None else None
    m.check(isinstance(heads, int), "a known number of heads", value.shape)
    assert isinstance(heads, int)
    return flat, heads


def merged(value: ir.Value, m: Matcher) -> ir.Value:
    """`[B, S, N * D]` made of `[B, N, S, D]`."""
    end = m.user(m.user(value, "Transpose").outputs[0], "Reshape").outputs[0]
    m.rank(end, 3)
    return end
