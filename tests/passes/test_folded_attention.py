"""Attention whose batch and heads are one axis, as torch.bmm computes it."""

import numpy as np
import pytest

from surgery.passes.attention.attention_heads import AttentionHeads
from surgery.passes.attention.folded_attention import FoldedAttention
from surgery.passes.attention.multi_head_attention import MultiHeadAttention
from surgery.passes.tidy.shapes import Shapes

POSITIONS = """
g (float[S,B,32] q, float[T,B,32] k, float[T,B,32] v) => (float[R,32] y)
<int64[3] folded = {0, -1, 8}, int64[2] flat = {-1, 32}, float scale = {0.3}> {
  length = Shape<start = 0, end = 1>(q)
  other = Shape<start = 0, end = 1>(k)
  batch = Shape<start = 1, end = 2>(q)
  both = Mul(batch, four)
  of_query = Concat<axis = 0>(length, both, eight)
  of_key = Concat<axis = 0>(other, both, eight)
  split = Reshape(q, of_query)
  query = Transpose<perm = [1, 0, 2]>(split)
  scaled = Mul(query, scale)
  split_k = Reshape(k, of_key)
  key = Transpose<perm = [1, 2, 0]>(split_k)
  split_v = Reshape(v, of_key)
  value = Transpose<perm = [1, 0, 2]>(split_v)
  scores = MatMul(scaled, key)
  weights = Softmax<axis = -1>(scores)
  out = MatMul(weights, value)
  back = Transpose<perm = [1, 0, 2]>(out)
  y = Reshape(back, flat)
}
""".replace("float scale", "int64[1] four = {4}, int64[1] eight = {8}, float scale")
BEFORE = """
g (float[B,S,32] q, float[B,T,32] k, float[B,T,32] v) => (float[B,S,32] y)
<int64[4] heads = {0, 0, 4, 8}, float scale = {0.3}, int64[1] minus = {-1}, int64[1] four = {4},
 int64[1] eight = {8}, int64[3] merged = {0, 0, 32}> {
  batch = Shape<start = 0, end = 1>(q)
  length = Shape<start = 1, end = 2>(q)
  other = Shape<start = 1, end = 2>(k)
  both = Mul(batch, four)
  of_query = Concat<axis = 0>(both, length, eight)
  of_key = Concat<axis = 0>(both, other, eight)
  apart = Concat<axis = 0>(batch, four, length, eight)
  scaled = Mul(q, scale)
  split = Reshape(scaled, heads)
  moved = Transpose<perm = [0, 2, 1, 3]>(split)
  query = Reshape(moved, of_query)
  split_k = Reshape(k, heads)
  moved_k = Transpose<perm = [0, 2, 1, 3]>(split_k)
  keys = Reshape(moved_k, of_key)
  key = Transpose<perm = [0, 2, 1]>(keys)
  split_v = Reshape(v, heads)
  moved_v = Transpose<perm = [0, 2, 1, 3]>(split_v)
  value = Reshape(moved_v, of_key)
  scores = MatMul(query, key)
  weights = Softmax<axis = -1>(scores)
  out = MatMul(weights, value)
  whole = Reshape(out, apart)
  back = Transpose<perm = [0, 2, 1, 3]>(whole)
  y = Reshape(back, merged)
}
"""
MISSES = {
    "over queries": ("Softmax<axis = -1>", "Softmax<axis = 1>", "a softmax over keys"),
    "a mask": ("Softmax<axis = -1>(scores)", "Softmax<axis = -1>(hidden)", "MatMul"),
    "values of other heads": ("moved_v = Transpose<perm = [0, 2, 1, 3]>",
                              "moved_v = Transpose<perm = [0, 1, 2, 3]>", "values made of rows"),
    "values times two": ("value = Reshape(moved_v", "twice = Mul(moved_v, scale)\n"
                         "  value = Reshape(twice", "values as they are"),
    "keys not turned": ("key = Transpose<perm = [0, 2, 1]>", "key = Neg", "keys made of rows"),
    "a result that stays": ("whole = Reshape(out, apart)", "less = Neg(out)\n"
                            "  whole = Reshape(less, apart)", "a result that becomes rows"),
}  # fmt: skip


def make():
    return FoldedAttention()


def prepare(model):
    """Work out the shapes that the pass reads."""
    Shapes()(model)


def shaped(model):
    """With those shapes."""
    prepare(model)
    return model


def test_golden(build, golden):
    golden(make(), shaped(build(BEFORE)))


@pytest.mark.parametrize("name", MISSES)
def test_near_miss(build, untouched, name):
    old, new, reason = MISSES[name]
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if name == "a mask":
        text = text.replace("  weights", "  hidden = Add(scores, scores)\n  weights")
    untouched(make(), shaped(build(text)), reason)


def feeds(rng, positions):
    for b, s, t in ((1, 1, 1), (2, 3, 5), (3, 1, 2), (2, 6, 6)):
        shapes = {"q": (b, s, 32), "k": (b, t, 32), "v": (b, t, 32)}
        yield {
            name: rng.standard_normal((n, b, w) if positions else (b, n, w)).astype(np.float32)
            for name, (b, n, w) in shapes.items()
        }


@pytest.mark.parametrize("text", [BEFORE, POSITIONS], ids=["rows", "positions first"])
def test_numbers(build, same_numbers, rng, text):
    model = shaped(build(text))
    same_numbers(make(), model, feeds(rng, text is POSITIONS), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("text", [BEFORE, POSITIONS], ids=["rows", "positions first"])
def test_one_query(build, run, rng, text):
    """A single query, as pooling has: its axis of length 1 must not be taken for the batch."""
    text = text.replace("float[B,S,32] q", "float[B,1,32] q").replace("[S,B,32] q", "[1,B,32] q")
    model = shaped(build(text.replace("float[B,S,32] y", "float[B,1,32] y")))
    cases = [case for case in feeds(rng, text.find("R,32") > 0) if case["q"].size in (32, 96)]
    want = [run(model, case) for case in cases]
    for work in (make(), AttentionHeads(), MultiHeadAttention()):
        work(model)
    assert [n.op_type for n in model.graph].count("MultiHeadAttention") == 1
    for case, one in zip(cases, want, strict=True):
        np.testing.assert_allclose(run(model, case)["y"], one["y"], rtol=2e-5, atol=2e-6)
