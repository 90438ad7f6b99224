"""RMS normalization as one node."""

import numpy as np
import pytest

from surgery.passes.norms.rms_norm import RmsNorm

BEFORE = """
g (float[B,S,32] x, float[32] norm_weight) => (float[B,S,32] y)
<float two = {2}, int64[1] last = {-1}, float small = {0.000001}> {
  square = Pow(x, two)
  mean = ReduceMean<keepdims = 1>(square, last)
  total = Add(mean, small)
  root = Sqrt(total)
  inverse = Reciprocal(root)
  normed = Mul(x, inverse)
  y = Mul(norm_weight, normed)
}
"""
MISSES = [
    ("two = {2}", "two = {3}", "an exponent of 2"),
    ("Pow(x, two)", "Mul(x, y2)", "x * x"),
    ("last = {-1}", "last = {1}", "the mean over the last axis"),
    ("last = {-1}", "last = {-2}", "the mean over the last axis"),
    ("int64[1] last = {-1}", "int64[2] last = {-1, 1}", "the mean over the last axis"),
    ("keepdims = 1", "keepdims = 0", "keepdims=1"),
    ("Add(mean, small)", "Add(mean, mean)", "a constant epsilon"),
    ("float small = {0.000001}", "float[2] small = {0.1, 0.2}", "a constant epsilon"),
    ("Add(mean, small)", "Sub(mean, small)", "read by one Add alone"),
    ("Sqrt(total)", "Log(total)", "read by one Sqrt alone"),
    ("Reciprocal(root)", "Neg(root)", "read by one Reciprocal alone"),
    ("normed = Mul(x, inverse)", "normed = Mul(y2, inverse)", "x scaled by its own norm"),
    ("Mul(norm_weight, normed)", "Mul(normed, normed)", "of rank 1"),
    ("float[32] norm_weight", "float[1,32] norm_weight", "of rank 1"),
    ("Mul(norm_weight, normed)", "Add(norm_weight, normed)", "read by one Mul alone"),
    ("=> (float[B,S,32] y)", "=> (float[B,S,32] y, float[B,S,1] root)", "by one Reciprocal alone"),
]
SHAPES = [(1, 1), (3, 7), (2, 1), (1, 64)]


def make():
    return RmsNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "y2" in new:
        text = text.replace("square =", "y2 = Abs(x)\n  square =")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Pow(x, two)", "Mul(x, x)"),
        ("float two = {2}", "float[1] two = {2}"),
        ("float small = {0.000001}", "float[1] small = {0.000001}"),
        ("last = {-1}", "last = {2}"),
        ("Mul(x, inverse)", "Mul(inverse, x)"),
        ("Add(mean, small)", "Add(small, mean)"),
        ("Mul(norm_weight, normed)", "Mul(normed, norm_weight)"),
    ],
)
def test_other_spellings(build, old, new):
    assert old in BEFORE
    work = make()
    work(build(BEFORE.replace(old, new)))
    assert work.count == 1


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e3])
def test_numbers(build, same_numbers, rng, scale):
    inputs = [
        {"x": (scale * rng.standard_normal((*shape, 32))).astype(np.float32)} for shape in SHAPES
    ]
    inputs.append({"x": np.zeros((2, 3, 32), np.float32)})
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-6, atol=1e-9)


POWER = BEFORE.replace("root = Sqrt(total)", "inverse = Pow(total, up)")
POWER = POWER.replace("  inverse = Reciprocal(root)\n", "")
POWER = POWER.replace("float two = {2}", "float two = {2}, float up = {-0.5}")


def test_root_as_a_power(build, same_numbers, untouched, rng):
    """(mean + epsilon) ** -0.5 in place of the reciprocal of its root; no other power."""
    inputs = [{"x": rng.standard_normal((*shape, 32)).astype(np.float32)} for shape in SHAPES]
    same_numbers(make(), build(POWER), inputs, rtol=2e-6, atol=1e-9)
    untouched(make(), build(POWER.replace("{-0.5}", "{0.5}")), "an exponent of -1/2")


def test_under_the_other_name(build, same_numbers, untouched, rng):
    """ONNX's own op, for providers that have a kernel under the older name alone."""
    text = BEFORE[: BEFORE.index("<float")] + "{ y = RMSNormalization<axis = 2>(x, norm_weight) }"
    inputs = [{"x": rng.standard_normal((*shape, 32)).astype(np.float32)} for shape in SHAPES]
    same_numbers(RmsNorm("SimplifiedLayerNormalization"), build(text), inputs, rtol=2e-6, atol=1e-9)
    untouched(make(), build(text), "")
    untouched(
        RmsNorm("SimplifiedLayerNormalization"), build(text.replace("axis = 2", "axis = 1")), "last"
    )
