"""A product with a weight on the left, as one with the weight on the right."""

import numpy as np
import pytest

from surgery.passes import MatMulNBits, RightWeight

BEFORE = """
g (float[32,M] x, float[24,32] up_weight) => (float[24,M] y) {
  y = MatMul(up_weight, x)
}
"""
TURNED = """
g (float[32,M] x, float[32,24] up_weight) => (float[24,M] y) {
  turned = Transpose<perm = [1, 0]>(up_weight)
  y = MatMul(turned, x)
}
"""
BATCH = BEFORE.replace("float[32,M] x", "float[B,2,32,M] x").replace("[24,M] y", "[B,2,24,M] y")
MISSES = {
    "two weights": (BEFORE.replace("float[32,M] x", "float[32,8] down_weight")
                    .replace("x)", "down_weight)").replace("[24,M]", "[24,8]"),
                    "a computed right operand"),
    "a vector": (BEFORE.replace("[32,M] x", "[32] x").replace("[24,M]", "[24]"),
                 "a known rank of 2 or more"),
    "a rank of 3": (BEFORE.replace("float[24,32]", "float[2,24,32]")
                    .replace("[24,M]", "[2,24,M]"), "of rank 2"),
}  # fmt: skip


def make():
    return RightWeight()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("text", "reason"), MISSES.values(), ids=MISSES)
def test_near_miss(build, untouched, text, reason):
    untouched(make(), build(text), reason)


@pytest.mark.parametrize("text", [BEFORE, TURNED, BATCH], ids=["left", "turned", "batch"])
def test_numbers(build, same_numbers, rng, text):
    outer = (3, 2) if text == BATCH else ()
    inputs = [{"x": rng.standard_normal((*outer, 32, m)).astype(np.float32)} for m in (1, 5)]
    same_numbers(make(), build(text), inputs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("text", [BEFORE, TURNED, BATCH], ids=["left", "turned", "batch"])
def test_is_quantized(build, text):
    """What the pass makes is what quantizing takes."""
    model = build(text)
    assert MatMulNBits().sites(model) == []
    make()(model)
    assert len(MatMulNBits().sites(model)) == 1
