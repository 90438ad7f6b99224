"""Attention with the biases of its projections."""

import numpy as np
import pytest

from surgery.passes.attention.attention_bias import AttentionBias

BEFORE = """
g (float[B,S,32] q, float[B,T,32] k, float[B,T,32] v, float[32] q_bias, float[32] v_bias)
=> (float[B,S,32] y) {
  query = Add(q, q_bias)
  value = Add(v_bias, v)
  y = com.microsoft.MultiHeadAttention<num_heads = 4>(query, k, value)
}
"""
MISSES = {
    "none": (BEFORE.replace("Add(", "Mul("), "a stored bias"),
    "has one": (BEFORE.replace("float[32] q_bias", "float[32] q_bias, float[96] all_bias")
                .replace("k, value)", "k, value, all_bias)"), "no bias yet"),
    "narrow values": (BEFORE.replace("float[B,T,32] v,", "float[B,T,16] v,")
                      .replace("float[32] v_bias", "float[16] v_bias")
                      .replace("(float[B,S,32] y)", "(float[B,S,16] y)"), "one width"),
    "read twice": (BEFORE.replace("  y =", "  z = com.microsoft.MultiHeadAttention<num_heads = 4>"
                                  "(query, k, value)\n  y =")
                   .replace("=> (float[B,S,32] y)", "=> (float[B,S,32] y, float[B,S,32] z)"),
                   "a stored bias"),
}  # fmt: skip


def make():
    return AttentionBias()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [
        {
            "q": rng.standard_normal((b, s, 32)).astype(np.float32),
            "k": rng.standard_normal((b, t, 32)).astype(np.float32),
            "v": rng.standard_normal((b, t, 32)).astype(np.float32),
        }
        for b, s, t in ((1, 1, 1), (2, 3, 5), (3, 7, 2))
    ]
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-5, atol=2e-6)
