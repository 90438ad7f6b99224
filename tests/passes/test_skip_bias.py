"""A residual norm with the bias of what it adds."""

import numpy as np
import pytest

from surgery.passes.norms.skip_bias import SkipBias

BEFORE = """
g (float[B,S,16] x, float[B,S,16] before, float[16] out_bias, float[16] norm_weight,
   float[16] norm_bias) => (float[B,S,16] y, float[B,S,16] sum) {
  h = Add(out_bias, x)
  y, a, b, sum = com.microsoft.SkipLayerNormalization<epsilon = 0.01>(before, h, norm_weight,
                                                                      norm_bias)
}
"""
RMS = """
g (float[B,S,16] x, float[B,S,16] before, float[16] out_bias, float[16] norm_weight)
=> (float[B,S,16] y, float[B,S,16] sum) {
  h = Add(x, out_bias)
  y, a, b, sum = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.01>(h, before,
                                                                                norm_weight)
}
"""
MISSES = {
    "read twice": (BEFORE.replace("y, a, b, sum =", "sum2 = Neg(h)\n  y, a, b, sum =")
                   .replace("float[B,S,16] sum)", "float[B,S,16] sum, float[B,S,16] sum2)"),
                   "rows and a stored bias"),
    "no sum": (BEFORE.replace("Add(", "Mul("), "rows and a stored bias"),
    "has one": (BEFORE.replace("norm_bias)\n}", "norm_bias, norm_bias)\n}"), "no bias yet"),
}  # fmt: skip


def make():
    return SkipBias()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("text", [BEFORE, RMS], ids=["layer norm", "rms norm"])
def test_numbers(build, same_numbers, rng, text):
    model = build(text)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None and value.name == "h":
                value.shape = model.graph.inputs[0].shape
    inputs = [
        {name: rng.standard_normal((*shape, 16)).astype(np.float32) for name in ("x", "before")}
        for shape in ((1, 1), (3, 7), (2, 30))
    ]
    same_numbers(make(), model, inputs, rtol=2e-5, atol=2e-6)
