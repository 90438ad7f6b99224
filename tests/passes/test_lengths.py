"""Lengths read from the graph's inputs."""

import numpy as np
import pytest

from surgery.passes.tidy.lengths import Lengths

BEFORE = """
g (float[B,S,12] x, float[B,3,P,4] past, float[12,12] w_weight)
=> (float[B,3,T,4] present, float[1,1,1,T] seen, float[B,S,12] y)
<int64 nil = {0}, int64 one = {1}, int64 two = {2}, int64[1] n = {3}, int64[1] d = {4},
 int64[1] front = {0}, float[1] number = {1}, int64[1] single = {1}, int64[4] heads = {0, 0, 3, 4},
 float[B,S,12] h, float[B,S,3,4] split, float[B,3,S,4] moved> {
  h = MatMul(x, w_weight)
  split = Reshape(h, heads)
  moved = Transpose<perm = [0, 2, 1, 3]>(split)
  present = Concat<axis = 2>(past, moved)
  sizes = Shape(present)
  length = Gather(sizes, two)
  long = Unsqueeze(length, front)
  shape = Concat<axis = 0>(single, single, single, long)
  seen = Expand(number, shape)
  rows = Shape(h)
  y = Reshape(moved, rows)
}
"""
PRODUCT = """
g (float[B,S,12] x) => (float[M] y) <float[1] number = {1}, int64[1] axis = {0}, float[B,S,12] h> {
  h = Neg(x)
  flat = Size(h)
  many = Unsqueeze(flat, axis)
  y = Expand(number, many)
}
"""
CONTENT = """
g (float[B] x) => (float[M] y) <float[1] number = {1}, int64[1] last = {1}> {
  where = NonZero(x)
  sizes = Shape(where)
  many = Gather(sizes, last)
  y = Expand(number, many)
}
"""


def make():
    return Lengths()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize("text", [PRODUCT, CONTENT], ids=["a product", "by content"])
def test_near_miss(build, untouched, text):
    untouched(make(), build(text), "")


def test_numbers(build, same_numbers, rng):
    inputs = [
        {
            "x": rng.standard_normal((b, s, 12)).astype(np.float32),
            "past": rng.standard_normal((b, 3, p, 4)).astype(np.float32),
        }
        for b, s, p in ((1, 1, 0), (3, 7, 2), (2, 1, 5))
    ]
    same_numbers(make(), build(BEFORE), inputs)
