"""A head that multiplies with the table as it lies."""

import numpy as np
import pytest

from surgery.passes.weights.fused_transpose import FusedTranspose

BEFORE = """
g (float[B,S,8] x, float[11,8] table_weight) => (float[B,S,11] logits) {
  turned = Transpose<perm = [1, 0]>(table_weight)
  logits = MatMul(x, turned)
}
"""
MISSES = [
    ("table_weight", "other_weight", "a shared weight"),
    ("table_weight", "table", "an initializer"),
    ("perm = [1, 0]", "perm = [0, 1]", "axes swapped"),
    ("float[11,8] table", "float[2,11,8] table", "of rank 2"),
    ("Transpose<perm = [1, 0]>(table_weight)", "Neg(table_weight)", ""),
]


def make():
    return FusedTranspose(lambda name: name == "table_weight")


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "Neg" in new or "[0, 1]" in new:
        text = text.replace("[11,8] table", "[8,11] table")
    if "[2,11" in new:
        text = text.replace("[1, 0]", "[0, 2, 1]").replace("B,S", "2,S")
    untouched(make(), build(text), reason)


def test_numbers(build, same_numbers, rng):
    """The weight keeps its layout; the table's other reader sees it as before."""
    text = BEFORE.replace("=> (", "=> (float[K,8] rows, ").replace("x, f", "x, int64[K] ids, f")
    text = text.replace("  turned =", "  rows = Gather(table_weight, ids)\n  turned =")
    model = build(text)
    inputs = [
        {"x": rng.standard_normal((*shape, 8)).astype(np.float32), "ids": np.array([0, 10])}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    same_numbers(make(), model, inputs, rtol=1e-5, atol=1e-6)
    assert list(model.graph.initializers["table_weight"].shape) == [11, 8]
