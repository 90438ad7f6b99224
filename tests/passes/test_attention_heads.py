"""Heads of an attention, however they were moved."""

import numpy as np
import pytest

from surgery.passes.attention.attention_heads import AttentionHeads

BEFORE = """
g (float[B,S,32] q, float[B,T,16] k, float[B,T,16] v) => (float[B,4,S,8] y)
<float some = {0.5}, int64[1] axis = {2}, int64[5] twice = {1, 1, 2, 1, 1},
 int64[4] split_q = {0, 0, 4, 8}, int64[4] split_k = {0, 0, 2, 8}, int64[4] flat = {0, 4, -1, 8},
 int64[3] stack = {-1, 8, 2}, float[B,4,T,8] key, float[B,4,T,8] value> {
  rows_q = Reshape(q, split_q)
  heads_q = Transpose<perm = [0, 2, 1, 3]>(rows_q)
  query = Mul(heads_q, some)
  rows_k = Reshape(k, split_k)
  turned_k = Transpose<perm = [0, 2, 3, 1]>(rows_k)
  heads_k = Transpose<perm = [0, 1, 3, 2]>(turned_k)
  lifted_k = Unsqueeze(heads_k, axis)
  spread_k = Expand(lifted_k, twice)
  key = Reshape(spread_k, flat)
  rows_v = Reshape(v, split_k)
  heads_v = Transpose<perm = [0, 2, 1, 3]>(rows_v)
  lifted_v = Unsqueeze(heads_v, axis)
  spread_v = Expand(lifted_v, twice)
  value = Reshape(spread_v, flat)
  y = Attention<scale = 0.25>(query, key, value)
}
"""
USUAL = """
g (float[B,S,32] q, float[B,T,16] k, float[B,T,16] v) => (float[B,4,S,8] y)
<int64[4] split_q = {0, 0, 4, 8}, int64[4] split_k = {0, 0, 2, 8}> {
  rows_q = Reshape(q, split_q)
  query = Transpose<perm = [0, 2, 1, 3]>(rows_q)
  rows_k = Reshape(k, split_k)
  key = Transpose<perm = [0, 2, 1, 3]>(rows_k)
  rows_v = Reshape(v, split_k)
  value = Transpose<perm = [0, 2, 1, 3]>(rows_v)
  y = Attention(query, key, value)
}
"""
TILED = """
g (float[B,S,32] q, float[B,T,16] k, float[B,T,16] v) => (float[B,4,S,8] y)
<int64[4] split_q = {0, 0, 4, 8}, int64[4] split_k = {0, 0, 2, 8}, int64[1] axis = {2},
 int64[5] twice = {1, 1, 2, 1, 1}, int64[4] flat = {0, 4, -1, 8}, int64[4] again = {1, 2, 1, 1},
 float[B,4,T,8] value, float[B,4,T,8] key> {
  rows_q = Reshape(q, split_q)
  query = Transpose<perm = [0, 2, 1, 3]>(rows_q)
  rows_k = Reshape(k, split_k)
  heads_k = Transpose<perm = [0, 2, 1, 3]>(rows_k)
  key = Tile(heads_k, again)
  rows_v = Reshape(v, split_k)
  heads_v = Transpose<perm = [0, 2, 1, 3]>(rows_v)
  lifted_v = Unsqueeze(heads_v, axis)
  spread_v = Expand(lifted_v, twice)
  value = Reshape(spread_v, flat)
  y = Attention(query, key, value)
}
"""


def make():
    return AttentionHeads()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), [
    (USUAL, "another way of writing it"),
    (TILED, "keys and values repeated alike"),
    (BEFORE.replace("float[B,4,T,8] key, ", "float[B,M,T,8] key, ")
     .replace("y = Attention", "pad = Concat<axis = 1>(key, key)\n  y = Attention")
     .replace("(query, key, value)", "(query, pad, value)"), ""),
], ids=["usual", "copies of all heads behind each other", "joined heads"])  # fmt: skip
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [
        {
            "q": rng.standard_normal((b, s, 32)).astype(np.float32),
            "k": rng.standard_normal((b, t, 16)).astype(np.float32),
            "v": rng.standard_normal((b, t, 16)).astype(np.float32),
        }
        for b, s, t in ((1, 1, 1), (2, 3, 5), (3, 7, 2))
    ]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=1e-6)


TWICE = """
g (float[B,S,32] q, float[B,T,32] k, float[B,T,32] v) => (float[B,4,S,8] y)
<int64[4] split = {0, 0, 4, 8}, float root = {0.6}, int64 n = {2}, int64[1] front = {0},
 int64[1] free = {-1}, int64[1] four = {4}, int64[1] eight = {8}> {
  rows_q = Reshape(q, split)
  query = Transpose<perm = [0, 2, 1, 3]>(rows_q)
  rows_k = Reshape(k, split)
  heads_k = Transpose<perm = [0, 2, 1, 3]>(rows_k)
  sizes = Shape(heads_k)
  t0 = Gather(sizes, n)
  t = Unsqueeze(t0, front)
  stack = Concat<axis = 0>(free, t, eight)
  stacked = Reshape(heads_k, stack)
  turned = Transpose<perm = [0, 2, 1]>(stacked)
  apart = Concat<axis = 0>(free, four, eight, t)
  key = Reshape(turned, apart)
  scaled = Mul(key, root)
  back = Transpose<perm = [0, 1, 3, 2]>(scaled)
  rows_v = Reshape(v, split)
  value = Transpose<perm = [0, 2, 1, 3]>(rows_v)
  y = Attention<scale = 1.0>(query, back, value)
}
"""


def test_keys_turned_as_a_stack(build, same_numbers, rng):
    """As torch.onnx writes it: batch and heads in one axis while the keys turn."""
    from surgery.passes.tidy.shapes import Shapes

    model = build(TWICE)
    Shapes()(model)
    inputs = [
        {name: rng.standard_normal((b, n, 32)).astype(np.float32) for name, n in sizes.items()}
        for b, sizes in ((1, dict(q=1, k=4, v=4)), (3, dict(q=5, k=2, v=2)))
    ]
    same_numbers(make(), model, inputs, rtol=2e-5, atol=1e-6)


ONE_BATCH = """
g (float[S,4,8] q, float[S,4,8] k, float[S,4,8] v) => (float[1,4,S,8] y)
<int64[1] front = {0}, float[1,4,S,8] value> {
  turned_q = Transpose<perm = [1, 0, 2]>(q)
  query = Unsqueeze(turned_q, front)
  turned_k = Transpose<perm = [1, 0, 2]>(k)
  key = Unsqueeze(turned_k, front)
  turned_v = Transpose<perm = [1, 0, 2]>(v)
  value = Unsqueeze(turned_v, front)
  y = Attention(query, key, value)
}
"""


def test_rows_without_a_batch(build, same_numbers, rng):
    """Heads that are split already, [S, N, D], as towers over packed patches have them."""
    from surgery.passes.tidy.shapes import Shapes

    model = build(ONE_BATCH)
    Shapes()(model)
    inputs = [
        {name: rng.standard_normal((s, 4, 8)).astype(np.float32) for name in "qkv"}
        for s in (1, 5, 16)
    ]
    same_numbers(make(), model, inputs, rtol=2e-5, atol=1e-6)
