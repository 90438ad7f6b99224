"""Residual addition and layer normalization as one node."""

import numpy as np
import pytest

from surgery.passes.norms.skip_layer_norm import SkipLayerNorm

BEFORE = """
g (float[B,S,16] a, float[B,S,16] b, float[16] norm_weight, float[16] norm_bias) =>
 (float[B,S,16] y) {
  h = Add(a, b)
  early = Neg(h)
  normed = LayerNormalization<axis = -1, epsilon = 0.01, stash_type = 1>(h, norm_weight, norm_bias)
  mixed = Mul(normed, early)
  y = Add(h, mixed)
}
"""
MISSES = [
    ("h = Add(a, b)", "h = Mul(a, b)", ""),
    ("float[B,S,16] b", "float[16] b", "a sum of equal shapes"),
    ("float[B,S,16] b", "float[B,1,16] b", "a sum of equal shapes"),
    ("axis = -1", "axis = 1", "a norm over the last axis"),
    ("(h, norm_weight, norm_bias)", "(h, w, norm_bias)", "a weight that is not computed"),
    ("float[16] norm_weight", "float[1] norm_weight", "weights of shape [16]"),
    ("float[16] norm_bias", "float norm_bias", "weights of shape [16]"),
]
TWO = BEFORE.replace(
    "mixed = Mul(normed, early)",
    """
  second = LayerNormalization<axis = -1>(h, norm_weight, norm_bias)
  mixed = Mul(normed, second)""",
)


def make():
    return SkipLayerNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "axis = 1" in new:
        text = text.replace("float[16] norm", "float[4,16] norm")
        text = text.replace("B,S,16", "B,4,16")
    if "(h, w" in new:
        text = text.replace("early =", "w = Abs(norm_weight)\n  early =")
    untouched(make(), build(text), reason)


def inputs(rng):
    for shape in ((1, 1), (3, 5), (2, 40)):
        yield {name: rng.standard_normal((*shape, 16)).astype(np.float32) for name in "ab"}


def test_numbers(build, same_numbers, rng):
    same_numbers(make(), build(BEFORE), inputs(rng), rtol=2e-6, atol=1e-6)


def test_sum_is_bit_equal(build, same_numbers, rng):
    """The residual stream does not change by a bit."""
    model = build(BEFORE.replace("=>\n (", "=> (float[B,S,16] h, "))
    model.graph.outputs[:] = [v for v in model.graph.outputs if v.name == "h"]
    same_numbers(make(), model, inputs(rng))


def test_two_norms_of_one_sum(build, same_numbers, rng):
    """The first norm takes the sum along, the other reads it."""
    work = make()
    same_numbers(work, build(TWO), inputs(rng), rtol=2e-6, atol=1e-6)
    assert work.count == 1
