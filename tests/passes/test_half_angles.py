"""Angles repeated after their cosine."""

import numpy as np
import pytest

from surgery.passes.rotary.half_angles import HalfAngles

BEFORE = """
g (float[B,S,4] f, float[B,S,4] p) => (float[B,S,8] cos, float[B,S,8] sin, float[B,S,8] pairs)
<float scale = {1.5}, int64[1] last = {-1}, int64[4] two = {1, 1, 1, 2}, int64[3] flat = {0, 0, 8},
 float[B,S,8] pp> {
  ff = Concat<axis = -1>(f, f)
  c = Cos(ff)
  cos = Mul(c, scale)
  sin = Sin(ff)
  lifted = Unsqueeze(p, last)
  doubled = Expand(lifted, two)
  pp = Reshape(doubled, flat)
  pairs = Cos(pp)
}
"""
ONE = """
g (float[B,4,4] f, float[B,4,4] p) => (float[X,Y,Z] cos) <float scale = {1.5}> {
  ff = Concat<axis = -1>(f, f)
  cos = Cos(ff)
}
"""
MISSES = [
    ("Concat<axis = -1>(f, f)", "Concat<axis = -1>(f, p)", "the same angles twice"),
    ("Concat<axis = -1>(f, f)", "Concat<axis = 1>(f, f)", "angles joined at the end"),
    ("Concat<axis = -1>(f, f)", "Concat<axis = -1>(f, f, f)", "the same angles twice"),
    ("Concat<axis = -1>(f, f)", "Add(f, f)", ""),
]


def make():
    return HalfAngles()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in ONE
    untouched(make(), build(ONE.replace(old, new)), reason)


def test_numbers(build, same_numbers, rng):
    """Bit for bit."""
    inputs = [
        {n: (30 * rng.standard_normal((*shape, 4))).astype(np.float32) for n in "fp"}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    same_numbers(make(), build(BEFORE), inputs)
