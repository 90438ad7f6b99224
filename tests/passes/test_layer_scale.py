"""A learnt scale in the weights before it."""

import numpy as np
import pytest

from surgery.passes.mlp.layer_scale import LayerScale

BEFORE = """
g (float[P,6] x, float[4,6] fc_weight, float[4] fc_bias, float[4] scale_weight) => (float[P,4] y) {
  out = Gemm<transB = 1>(x, fc_weight, fc_bias)
  scaled = Mul(out, scale_weight)
  y = Tanh(scaled)
}
"""
PLAIN = """
g (float[B,S,6] x, float[4,6] fc_weight, float[4] fc_bias, float[4] scale_weight)
=> (float[B,S,4] y) {
  turned = Transpose<perm = [1, 0]>(fc_weight)
  product = MatMul(x, turned)
  out = Add(product, fc_bias)
  scaled = Mul(scale_weight, out)
  y = Tanh(scaled)
}
"""
MISSES = [
    ("float[4] scale_weight", "float[4] scale", ""),
    ("float[4] scale_weight", "float[1,4] scale_weight", "of rank 1"),
    ("float[4] scale_weight", "float[1] scale_weight", "1 rows"),
    ("transB = 1", "transB = 0", "x W^T + b"),
    ("transB = 1", "transB = 1, alpha = 2.0", "x W^T + b"),
    ("y = Tanh(scaled)", "y = Add(scaled, out)", "a projection that the scale alone reads"),
    ("y = Tanh(scaled)", "more = Mul(fc_bias, fc_bias)\n  y = Add(scaled, more)",
     "weights read once"),
    ("float[4,6] fc_weight", "float[4,6] fc", "a weight of the checkpoint"),
]  # fmt: skip


CONSUMED = ("scale_weight",)
"""Weights whose numbers go into others."""


def make():
    return LayerScale()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if new.endswith("] scale"):
        text = text.replace("scale_weight", "scale").replace("scale scale", "scale")
    if "[1,4]" in new:
        text = text.replace("(float[P,4] y)", "(float[U,V] y)")
    if "transB = 0" in new:
        text = text.replace("[4,6] fc", "[6,4] fc")
    if new.endswith("] fc"):
        text = text.replace("x, fc_weight", "x, fc")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("text", [BEFORE, PLAIN, BEFORE.replace(", fc_bias)", ")")])
def test_numbers(build, same_numbers, rng, text):
    lead = [(1, 1), (3, 5), (2, 17)] if "B,S" in text else [(1,), (5,), (40,)]
    inputs = [{"x": rng.standard_normal((*shape, 6)).astype(np.float32)} for shape in lead]
    same_numbers(make(), build(text), inputs, rtol=1e-5, atol=1e-6)
