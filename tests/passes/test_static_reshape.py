"""Computed shapes as constants."""

import numpy as np
import pytest

from surgery.passes.tidy.static_reshape import StaticReshape

BEFORE = """
g (float[B,S,12] x) => (float[B,S,3,4] y, float[M,12] flat)
<int64[1] n = {3}, int64[1] d = {4}, int64[1] wide = {12}, int64[1] free = {-1}> {
  batch = Shape<start = 0, end = 1>(x)
  sequence = Shape<start = 1, end = 2>(x)
  split = Concat<axis = 0>(batch, sequence, n, d)
  y = Reshape(x, split)
  rows = Concat<axis = 0>(free, wide)
  flat = Reshape(x, rows)
}
"""
TWO_FREE = """
g (float[B,S,12] x) => (float[S,B,12] y) <int64[1] wide = {12}> {
  batch = Shape<start = 0, end = 1>(x)
  sequence = Shape<start = 1, end = 2>(x)
  turned = Concat<axis = 0>(sequence, batch, wide)
  y = Reshape(x, turned)
}
"""
CONSTANT = """
g (float[B,S,12] x) => (float[M,12] y) <int64[2] shape = {-1, 12}> {
  y = Reshape(x, shape)
}
"""
UNKNOWN = """
g (float[B,S,12] x, int64[R] shape) => (float y) {
  moved = Reshape(x, shape)
  y = ReduceSum<keepdims = 0>(moved)
}
"""


def make():
    return StaticReshape()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), [
    (TWO_FREE, "one free dimension at most"), (CONSTANT, ""), (UNKNOWN, "known ranks"),
], ids=["two free", "constant", "unknown rank"])  # fmt: skip
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [
        {"x": rng.standard_normal((*shape, 12)).astype(np.float32)}
        for shape in ((1, 1), (3, 7), (2, 1), (1, 30), (0, 3))
    ]
    same_numbers(make(), build(BEFORE), inputs)
