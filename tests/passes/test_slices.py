"""Neighbouring slices as one split."""

import numpy as np
import pytest

from surgery.passes.tidy.slices import Slices

BEFORE = """
g (float[B,S,10] x) => (float[B,S,2] a, float[B,S,5] b, float[B,S,3] c)
<int64[1] n0 = {0}, int64[1] n2 = {2}, int64[1] n7 = {7}, int64[1] far = {9223372036854775807},
 int64[1] last = {2}> {
  part2 = Slice(x, n2, n7, last)
  b = Neg(part2)
  part1 = Slice(x, n0, n2, last)
  a = Abs(part1)
  part3 = Slice(x, n7, far, last)
  c = Exp(part3)
}
"""
MISSES = [
    ("Slice(x, n7, far, last)", "Slice(x, n2, far, last)", "one part from"),
    ("Slice(x, n0, n2, last)", "Slice(x, n0, n7, last)", "three parts or more"),
    ("float[B,S,10] x", "float[B,S,D] x", ""),
    ("Slice(x, n7, far, last)", "Slice(other, n7, far, last)", "one part from 7"),
    ("Slice(x, n2, n7, last)", "Slice(x, n2, n7, last, n2)", "one part from 2"),
    ("Slice(x, n0, n2, last)", "Slice(x, n0, n2, n0)", ""),
]


def make():
    return Slices()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    text = text.replace("float[B,S,2] a, float[B,S,5] b, float[B,S,3] c",
                        ", ".join(f"float[U{n},V{n},W{n}] {n}" for n in "abc"))  # fmt: skip
    if "other" in new:
        text = text.replace("  part2 =", "  other = Neg(x)\n  part2 =")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [
        {"x": rng.standard_normal((*shape, 10)).astype(np.float32)}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    same_numbers(make(), build(BEFORE), inputs)
