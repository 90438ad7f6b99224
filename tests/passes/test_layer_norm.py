"""Layer normalization as one node."""

import numpy as np
import pytest

from surgery.passes.norms.layer_norm import LayerNorm

BEFORE = """
g (float[B,S,16] x, float[16] norm_weight, float[16] norm_bias) => (float[B,S,16] y)
<float two = {2}, int64[1] last = {-1}, float small = {0.001}> {
  average = ReduceMean<keepdims = 1>(x, last)
  centred = Sub(x, average)
  square = Pow(centred, two)
  variance = ReduceMean<keepdims = 1>(square, last)
  total = Add(variance, small)
  root = Sqrt(total)
  normed = Div(centred, root)
  product = Mul(normed, norm_weight)
  y = Add(product, norm_bias)
}
"""
MISSES = [
    ("two = {2}", "two = {3}", "an exponent of 2"),
    ("last = {-1}", "last = {1}", "the mean over the last axis"),
    ("Sub(x, average)", "Sub(other, average)", "x minus its own mean"),
    ("Sub(x, average)", "Sub(average, x)", ""),
    ("Pow(centred, two)", "Pow(x, two)", "one mean of squares"),
    ("Div(centred, root)", "Div(x, root)", "scaled by its own norm"),
    ("Div(centred, root)", "Div(root, centred)", "a division by the root"),
    ("float[16] norm_weight", "float[1,16] norm_weight", "of rank 1"),
    ("Add(variance, small)", "Add(variance, variance)", "a constant epsilon"),
]


def make():
    return LayerNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "other" in new:
        text = text.replace("  average =", "  other = Neg(x)\n  average =")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("Pow(centred, two)", "Mul(centred, centred)"),
        ("Div(centred, root)", "Mul(centred, inverse)"),
        ("y = Add(product, norm_bias)", "y = Neg(product)"),
    ],
)
def test_numbers(build, same_numbers, rng, old, new):
    text = BEFORE.replace(old, new) if old else BEFORE
    if "inverse" in new:
        text = text.replace("  normed =", "  inverse = Reciprocal(root)\n  normed =")
    inputs = [
        {"x": (scale * rng.standard_normal((*shape, 16)) + 3).astype(np.float32)}
        for shape in ((1, 1), (3, 5), (2, 17))
        for scale in (1, 30)
    ]
    same_numbers(make(), build(text), inputs, rtol=1e-5, atol=1e-5)
