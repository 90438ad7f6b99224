"""GELU with the bias before it."""

import numpy as np
import pytest

from surgery.passes.mlp.bias_gelu import BiasGelu

BEFORE = """
g (float[B,S,16] x, float[16] up_bias) => (float[B,S,16] y) {
  h = Add(x, up_bias)
  y = Gelu(h)
}
"""
MISSES = {
    "read twice": (BEFORE.replace("y = Gelu(h)", "g = Gelu(h)\n  y = Mul(g, h)"), "nothing else"),
    "rows": (BEFORE.replace("float[16] up_bias", "float[B,S,16] more").replace("up_bias", "more"),
             "a stored bias"),
    "no sum": (BEFORE.replace("Add(", "Mul("), "a stored bias"),
    "one number": (BEFORE.replace("float[16] up_bias", "float[1] up_bias"), "a stored bias"),
}  # fmt: skip


def make():
    return BiasGelu()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_numbers(build, same_numbers, rng, kind):
    model = build(BEFORE.replace("Gelu(h)", f'Gelu<approximate = "{kind}">(h)'))
    inputs = [
        {"x": 2 * rng.standard_normal((*shape, 16)).astype(np.float32)}
        for shape in ((1, 1), (3, 7), (2, 30))
    ]
    same_numbers(make(), model, inputs, rtol=2e-5, atol=2e-6)
