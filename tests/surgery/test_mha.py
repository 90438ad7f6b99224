"""Attention without a mask."""

import numpy as np
import pytest

from surgery.passes.mha import Mha

BEFORE = """
g (float[B,S,32] q, float[B,T,32] k, float[B,T,32] v) => (float[B,S,32] y)
<int64[4] heads = {0, 0, 2, 16}, int64[3] flat = {0, 0, 32}, bool[1,1,2,2] shown = {1, 1, 1, 1},
 bool[1,1,2,2] hidden = {1, 1, 0, 1}, float[1,1,2,2] zero = {0, 0, 0, 0}> {
  split_q = Reshape(q, heads)
  query = Transpose<perm = [0, 2, 1, 3]>(split_q)
  split_k = Reshape(k, heads)
  key = Transpose<perm = [0, 2, 1, 3]>(split_k)
  split_v = Reshape(v, heads)
  value = Transpose<perm = [0, 2, 1, 3]>(split_v)
  scores = Attention<scale = 0.3, is_causal = 0>(query, key, value)
  back = Transpose<perm = [0, 2, 1, 3]>(scores)
  y = Reshape(back, flat)
}
"""
MISSES = [
    ("query, key, value)", "query, key, value, hidden)", "a mask that hides nothing"),
    ("query, key, value)", "query, key, value, given)", "a mask that hides nothing"),
    ("is_causal = 0", "is_causal = 1", "neither causal nor capped"),
    ("is_causal = 0", "softcap = 3.0", "neither causal nor capped"),
    ("Reshape(k, heads)", "Reshape(k, one)", "2 key heads"),
    ("query = Transpose<perm = [0, 2, 1, 3]>(split_q)", "query = Abs(split_q)", "from Transpose"),
]


def make():
    return Mha()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "given" in new:
        text = text.replace("k, float", "k, bool[B,1,S,T] given, float", 1)
    if "one)" in new:
        text = text.replace("float[B,T,32] k", "float[B,T,16] k").replace("(v, heads)", "(v, one)")
        text = text.replace("float[B,T,32] v", "float[B,T,16] v")
        text = text.replace("<int64[4] heads", "<int64[4] one = {0, 0, 1, 16}, int64[4] heads")
    if "Abs" in new:
        text = text.replace("float[B,S,32] y", "float[U,V,W] y")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("mask", ["", ", shown", ", zero"])
def test_numbers(build, same_numbers, rng, mask):
    """A constant mask that hides nothing is left out."""
    text = BEFORE.replace("query, key, value)", f"query, key, value{mask})")
    shapes = [(1, 2, 2), (3, 2, 2)] if mask else [(1, 1, 1), (3, 5, 5), (2, 1, 9), (1, 33, 33)]
    inputs = [
        {
            "q": rng.standard_normal((b, s, 32)).astype(np.float32),
            **{n: rng.standard_normal((b, t, 32)).astype(np.float32) for n in "kv"},
        }
        for b, s, t in shapes
    ]
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)
