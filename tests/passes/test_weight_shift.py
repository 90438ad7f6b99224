"""A number added to a weight, once."""

import numpy as np
import pytest

from surgery.passes.weights.weight_shift import WeightShift

BEFORE = """
g (float[B,S,6] x, float[6] norm_weight) => (float[B,S,6] y) <float one = {1}> {
  weight = Add(norm_weight, one)
  y = Mul(x, weight)
}
"""
MISSES = [
    ("float[6] norm_weight", "float[6] norm", ""),
    ("float one = {1}", "float[6] one = {1, 1, 1, 1, 1, 1}", ""),
    ("float one = {1}", "float[1,1,1] one = {1}", "the weight's own shape"),
    ("y = Mul(x, weight)", "z = Mul(x, weight)\n  y = Add(z, norm_weight)", "by this Add alone"),
    ("Add(norm_weight, one)", "Sub(norm_weight, one)", ""),
]


def make():
    return WeightShift()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if new.endswith("] norm"):
        text = text.replace("(norm_weight", "(norm")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    """Bit for bit: the sum is rounded to float32 either way."""
    inputs = [
        {"x": rng.standard_normal((*shape, 6)).astype(np.float32)}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    same_numbers(make(), build(BEFORE), inputs)
    same_numbers(make(), build(BEFORE.replace("norm_weight, one", "one, norm_weight")), inputs)
