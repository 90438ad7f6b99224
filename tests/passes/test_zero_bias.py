"""Biases that are zero."""

import numpy as np
import pytest

from surgery.passes.vision.zero_bias import ZeroBias

BEFORE = """
g (float[P,6] x, float[4,6] fc_weight) => (float[P,4] y) <float[4] zeros = {0, 0, 0, 0}> {
  y = Gemm<transB = 1>(x, fc_weight, zeros)
}
"""
MISSES = [
    ("{0, 0, 0, 0}", "{0, 0, 0.5, 0}", "a bias of zeros"),
    ("fc_weight, zeros)", "fc_weight)", ""),
    ("fc_weight) =>", "fc_weight, float[4] fc_bias) =>", "a constant bias"),
]


def make():
    return ZeroBias()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "fc_bias" in new:
        text = text.replace("fc_weight, zeros)", "fc_weight, fc_bias)")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [{"x": rng.standard_normal((p, 6)).astype(np.float32)} for p in (1, 5, 40)]
    same_numbers(make(), build(BEFORE), inputs)
