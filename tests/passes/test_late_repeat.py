"""Rows of angles moved before each angle is repeated."""

import numpy as np
import pytest

from surgery.passes.rotary.late_repeat import LateRepeat

BEFORE = """
g (float[P,4] c, int64[K] order) => (float[P,8] y)
<int64[3] blocks = {2, 2, -1}, int64[2] rows = {4, -1}, float[Q,2,8] parts, float[K,2,8] moved> {
  cc = Concat<axis = -1>(c, c)
  parts = Reshape(cc, blocks)
  moved = Gather<axis = 0>(parts, order)
  back = Reshape(moved, rows)
  y = Neg(back)
}
"""
MISSES = [
    ("Concat<axis = -1>(c, c)", "Concat<axis = -1>(c, d)", "the same angles twice"),
    ("Concat<axis = -1>(c, c)", "Concat<axis = 0>(c, c)", "columns repeated"),
    ("Gather<axis = 0>", "Gather<axis = 1>", "rows that are moved afterwards"),
    ("{4, -1}", "{4, 8}", "rows that are moved afterwards"),
    ("y = Neg(back)", "s = ReduceSum<keepdims = 0>(cc)\n  y = Mul(back, s)", "moved afterwards"),
]


def make():
    return LateRepeat()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new).replace("float[P,8] y", "float[U,V] y")
    text = text.replace("float[K,2,8] moved", "float[L,M,N] moved")
    if ", d)" in new:
        text = text.replace("  cc =", "  d = Neg(c)\n  cc =")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    """Bit for bit, in any order of the blocks."""
    inputs = [
        {"c": rng.standard_normal((4, 4)).astype(np.float32), "order": np.array(order)}
        for order in ([0, 1], [1, 0], [1, 1])
    ]
    same_numbers(make(), build(BEFORE), inputs)
