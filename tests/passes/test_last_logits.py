"""Logits for the last position."""

import numpy as np
import pytest

from surgery.passes.outputs.last_logits import LastLogits

BEFORE = """
g (float[B,S,8] x, float[8,11] head_weight) => (float[B,S,11] logits) {
  hidden = Tanh(x)
  logits = MatMul(hidden, head_weight)
}
"""
MISSES = [
    ("logits", "scores", ""),
    ("=> (float[B,S,11] logits)", "=> (float[B,S,11] y)", ""),
    ("x, float[8,11]", "x, float[8,8] q_weight, float[8,11]", "more positions than one"),
    ("float[B,S", "float[S", "of rank 3"),
]


def make():
    return LastLogits()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if " y)" in new:
        text = text.replace("head_weight)\n", "head_weight)\n  y = Neg(logits)\n")
    if "q_weight" in new:
        text = text.replace("float[B,S", "float[B,1").replace("(x)", "(x1)")
        text = text.replace("hidden =", "x1 = MatMul(x, q_weight)\n  hidden =")
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (3, 9), (2, 33)])
def test_numbers(build, run, rng, shape):
    """The one row is the last of the rows before."""
    x = rng.standard_normal((*shape, 8)).astype(np.float32)
    model = build(BEFORE)
    want = run(model, {"x": x})["logits"]
    make()(model)
    got = run(model, {"x": x})["logits"]
    assert got.shape == (shape[0], 1, 11)
    np.testing.assert_allclose(got, want[:, -1:], rtol=1e-6, atol=1e-6)
    assert str(model.graph.outputs[0].shape) == "[B,1,11]"
