"""Heads normalized before they are moved."""

import numpy as np
import pytest

from surgery.passes.norms.head_norm import HeadNorm

BEFORE = """
g (float[B,S,3,8] x, float[8] norm_weight) => (float[B,3,S,8] y) {
  moved = Transpose<perm = [0, 2, 1, 3]>(x)
  normed = RMSNormalization<axis = -1, epsilon = 0.01>(moved, norm_weight)
  y = Neg(normed)
}
"""
MISSES = [
    ("perm = [0, 2, 1, 3]", "perm = [0, 2, 3, 1]", "a last axis that stays"),
    ("<perm = [0, 2, 1, 3]>", "", "a last axis that stays"),
    ("axis = -1", "axis = 2", "a norm over the last axis"),
    ("Transpose<perm = [0, 2, 1, 3]>(x)", "Abs(x)", ""),
    ("y = Neg(normed)", "y = Add(normed, moved)", "heads read by the norm alone"),
]


def make():
    return HeadNorm()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new).replace("float[B,3,S,8] y", "float[U,V,W,X] y")
    if "3, 1]" in new or not new:
        text = text.replace("float[8] norm", "float[1] norm")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("op", ["RMSNormalization", "LayerNormalization"])
def test_numbers(build, same_numbers, rng, op):
    inputs = [
        {"x": rng.standard_normal((*shape, 3, 8)).astype(np.float32)}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    text = BEFORE.replace("RMSNormalization", op)
    same_numbers(make(), build(text), inputs, rtol=1e-6, atol=1e-6)
