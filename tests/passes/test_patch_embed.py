"""The patch embedding as a matrix product."""

import numpy as np
import pytest

from surgery.passes.vision.patch_embed import PatchEmbed

BEFORE = """
g (float[P,48] pixels, float[5,3,2,2,4] proj_weight, float[5] proj_bias) => (float[P,5] y)
<int64[5] patch = {-1, 3, 2, 2, 4}, int64[2] rows = {-1, 5}> {
  patches = Reshape(pixels, patch)
  product = Conv<kernel_shape = [2, 2, 4], strides = [2, 2, 4]>(patches, proj_weight, proj_bias)
  y = Reshape(product, rows)
}
"""
MISSES = [
    ("kernel_shape = [2, 2, 4]", "pads = [1,0,0,0,0,0], kernel_shape = [2, 2, 4]", "no padding"),
    ("kernel_shape", 'auto_pad = "SAME_UPPER", kernel_shape', "no padding"),
    ("float[5,3,2,2,4] proj_weight", "float[6,1,2,2,4] proj_weight", "one group"),
    ("{-1, 3, 2, 2, 4}", "{-1, 3, 4, 2, 4}", "patches of"),
    ("{-1, 5}", "{-1, 10}", "rows of 5"),
    ("proj_weight, proj_bias)\n", "proj_w, proj_bias)\n", ""),
    ("y = Reshape(product, rows)", "z = Neg(product)\n  y = Reshape(z, rows)",
     "read by one Reshape"),
]  # fmt: skip


def make():
    return PatchEmbed()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new).replace("(float[P,5] y)", "(float[A,C] y)")
    if "[6,1" in new:
        text = text.replace("kernel_shape", "group = 3, kernel_shape")
        text = text.replace("float[5] proj_b", "float[6] proj_b").replace("{-1, 5}", "{-1, 6}")
    if "proj_w," in new:
        text = text.replace("proj_weight)", "proj_w)").replace("proj_weight, f", "proj_w, f")
    untouched(make(), build(text), reason)


def test_weight_read_twice(build, untouched):
    text = BEFORE.replace("y = Reshape(product, rows)",
                          "z = Reshape(product, rows)\n  s = ReduceSum<keepdims = 0>(proj_weight)\n"
                          "  y = Mul(z, s)")  # fmt: skip
    untouched(make(), build(text), "a weight read once")


@pytest.mark.parametrize("bias", [True, False])
def test_numbers(build, same_numbers, rng, bias):
    text = BEFORE
    if not bias:
        text = text.replace(", float[5] proj_bias", "").replace(", proj_bias", "")
    inputs = [{"pixels": rng.standard_normal((p, 48)).astype(np.float32)} for p in (1, 4, 30)]
    same_numbers(make(), build(text), inputs, rtol=1e-5, atol=2e-6)


def test_rows_of_another_width(build, same_numbers, rng):
    """Half a patch a row: what the convolution read is flattened, not what came before it."""
    text = BEFORE.replace("float[P,48] pixels", "float[Q,24] pixels")
    inputs = [{"pixels": rng.standard_normal((2 * p, 24)).astype(np.float32)} for p in (1, 4, 30)]
    same_numbers(make(), build(text), inputs, rtol=1e-5, atol=2e-6)
