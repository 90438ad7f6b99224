"""Weights in the dtype that they are used in."""

import numpy as np
import pytest

from surgery.passes.weights.weight_cast import WeightCast

BEFORE = """
g (float[N,5,3] x, bfloat16[5,3] w_weight, bfloat16[3] w_bias) => (float[N,5,3] y) {
  w = Cast<to = 1>(w_weight)
  b = Cast<to = 1>(w_bias)
  product = Mul(x, w)
  y = Add(product, b)
}
"""


def make():
    return WeightCast()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize("other", [
    "w2 = Cast<to = 1>(w_weight)\n  b = ReduceSum<keepdims = 0>(w2)",
    "h = Cast<to = 10>(w_weight)\n  w2 = Cast<to = 1>(h)\n  b = ReduceSum<keepdims = 0>(w2)",
    "r = Gather(w_weight, zero)\n  b = Cast<to = 1>(r)",
], ids=["twice", "two dtypes", "rows too"])  # fmt: skip
def test_weight_read_otherwise(build, untouched, other):
    text = BEFORE.replace(", bfloat16[3] w_bias", "")
    text = text.replace("(float[N,5,3] y)", "(float[N,5,3] y) <int64 zero = {0}>")
    text = text.replace("b = Cast<to = 1>(w_bias)", other)
    untouched(make(), build(text), "w_weight read by this Cast alone")


def test_weight_is_a_graph_output(build, untouched):
    text = BEFORE.replace(", bfloat16[3] w_bias", "").replace("Add(product, b)", "Neg(product)")
    text = text.replace("b = Cast<to = 1>(w_bias)\n", "")
    model = build(text)
    model.graph.outputs.append(model.graph.initializers["w_weight"])
    untouched(make(), model, "w_weight read by this Cast alone")


@pytest.mark.parametrize(("old", "new"), [
    ("bfloat16[3] w_bias", "bfloat16[3] inner"),
    ("=> (float[N,5,3] y) {", "=> (float[N,5,3] y) <bfloat16[3] inner = {1, 2, 3}> {"),
], ids=["a graph input", "a constant"])  # fmt: skip
def test_no_weight(build, old, new):
    """Only weights of the checkpoint change; the other cast stays."""
    text = BEFORE.replace(", bfloat16[3] w_bias", "") if "=>" in old else BEFORE
    assert old in BEFORE
    text = text.replace(old, new).replace("(w_bias)", "(inner)")
    model, work = build(text), make()
    work(model)
    assert work.count == 1
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "Add"]


@pytest.mark.parametrize(("stored", "used"), [("bfloat16", 1), ("float16", 1), ("bfloat16", 11)])
def test_numbers(build, same_numbers, rng, stored, used):
    """Bit for bit: the cast in NumPy is the one that the runtime does."""
    text = BEFORE.replace("bfloat16", stored)
    kind = {1: np.float32, 11: np.float64}[used]
    text = text.replace("to = 1>", f"to = {used}>")
    text = text.replace("float[N", {1: "float[N", 11: "double[N"}[used])
    inputs = [{"x": rng.standard_normal((n, 5, 3)).astype(kind)} for n in (0, 1, 4, 9)]
    same_numbers(make(), build(text), inputs)
