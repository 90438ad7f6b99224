"""The last hidden states as an output."""

import numpy as np
import pytest

from surgery.passes.outputs.hidden_states import HiddenStates

BEFORE = """
g (float[B,S,8] x, float[8,11] head_weight) => (float[B,S,11] logits) {
  hidden = Tanh(x)
  product = MatMul(hidden, head_weight)
  scale = Constant<value = float {0.5}>()
  logits = Mul(product, scale)
}
"""
MISSES = [
    ("logits", "scores", ""),
    ("float[B,S", "float[S", "of rank 3"),
    ("hidden = Tanh(x)", "unread = Tanh(x)", "a value that a node makes"),
    ("float[B,S,11] logits)", "float[B,S,11] logits, float[B,S,8] hidden)", "inside the graph"),
]


def make():
    return HiddenStates()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "unread" in new:
        text = text.replace("MatMul(hidden", "MatMul(x")
    untouched(make(), build(text), reason)


def test_a_value_of_that_name_makes_way(build, run, rng):
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    model = build(BEFORE.replace("product", "hidden_states"))
    make()(model)
    np.testing.assert_allclose(run(model, {"x": x})["hidden_states"], np.tanh(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (2, 33)])
def test_numbers(build, run, rng, shape):
    """The logits stay, what they are made from comes along."""
    x = rng.standard_normal((*shape, 8)).astype(np.float32)
    model = build(BEFORE)
    want = run(model, {"x": x})["logits"]
    make()(model)
    got = run(model, {"x": x})
    np.testing.assert_array_equal(got["logits"], want)
    np.testing.assert_allclose(got["hidden_states"], np.tanh(x), rtol=1e-6)
