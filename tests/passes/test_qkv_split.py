"""Queries, keys and values out of one projection."""

import numpy as np
import pytest

from surgery.passes.attention.qkv_split import QkvSplit

BEFORE = """
g (float[P,24] x) => (float[P,2,4] q, float[P,2,4] k, float[P,2,4] v)
<int64[4] shape = {-1, 3, 2, 4}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},
 int64[1] i3 = {3}> {
  split = Reshape(x, shape)
  parts = Transpose<perm = [1, 0, 2, 3]>(split)
  part0 = Slice(parts, i0, i1, i0)
  q0 = Squeeze(part0, i0)
  q = Neg(q0)
  part1 = Slice(parts, i1, i2, i0)
  k0 = Squeeze(part1, i0)
  k = Abs(k0)
  part2 = Slice(parts, i2, i3, i0)
  v0 = Squeeze(part2, i0)
  v = Exp(v0)
}
"""
MISSES = [
    ("perm = [1, 0, 2, 3]", "perm = [2, 0, 1, 3]", ""),
    ("{-1, 3, 2, 4}", "{-1, 4, 2, 3}", "three parts"),
    ("float[P,24] x", "float[R,48] x", "rows of 24"),
    ("Slice(parts, i1, i2, i0)", "Slice(parts, i1, i3, i0)", "slices of one part"),
    ("Slice(parts, i1, i2, i0)", "Slice(parts, i0, i1, i0)", "parts 0, 1 and 2"),
    ("Slice(parts, i1, i2, i0)", "Gather<axis = 0>(parts, i1)", "slices"),
    ("k = Abs(k0)", "k = Mul(k0, more)", "three readers"),
    ("Slice(parts, i1, i2, i0)", "Slice(parts, i1, i2, i1)", "slices of axis 0"),
]


def make():
    return QkvSplit()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "more" in new:
        text = text.replace("  k =", "  more = ReduceMax<keepdims = 0>(parts)\n  k =")
    if "perm" in new or "[R,48]" in new or "{-1, 4" in new or new.endswith(("i3, i0)", "i2, i1)")):
        outs = ", ".join(f"float[A{n},C{n},E{n}] {n}" for n in "qkv")
        if new.endswith(("i3, i0)", "i2, i1)")):
            text = text.replace("Squeeze(part1, i0)", "ReduceSum<keepdims = 0>(part1, i0)")
        text = text.replace("float[P,2,4] q, float[P,2,4] k, float[P,2,4] v", outs)
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [{"x": rng.standard_normal((p, 24)).astype(np.float32)} for p in (1, 4, 31)]
    same_numbers(make(), build(BEFORE), inputs)
