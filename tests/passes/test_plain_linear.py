"""Gemm as a product and a sum."""

import numpy as np
import pytest

from surgery.passes.quantized.plain_linear import PlainLinear

BEFORE = """
g (float[M,8] x, float[6,8] up_weight, float[6] up_bias) => (float[M,6] y) {
  y = Gemm<transB = 1>(x, up_weight, up_bias)
}
"""
AS_IT_LIES = """
g (float[M,8] x, float[8,6] up_weight) => (float[M,6] y) {
  y = Gemm(x, up_weight)
}
"""
MISSES = {
    "alpha": (BEFORE.replace("transB = 1", "transB = 1, alpha = 2.0"), "alpha and beta of 1"),
    "transA": (AS_IT_LIES.replace("float[M,8] x", "float[8,M] x")
               .replace("Gemm", "Gemm<transA = 1>"), "rows that are not transposed"),
    "computed": (BEFORE.replace("up_weight", "up"), "a stored weight"),
}  # fmt: skip


def make():
    return PlainLinear()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_a_layer_that_stays_in_float_stays_gemm(build, untouched):
    work = PlainLinear(lambda name: not name.startswith("up"))
    untouched(work, build(BEFORE), "a weight that is to be quantized")


@pytest.mark.parametrize("text", [BEFORE, AS_IT_LIES], ids=["turned", "as it lies"])
def test_numbers(build, same_numbers, rng, text):
    inputs = [{"x": rng.standard_normal((m, 8)).astype(np.float32)} for m in (1, 5, 40)]
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)
