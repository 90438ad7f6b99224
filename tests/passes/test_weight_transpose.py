"""Weights in the layout that they are used in."""

import numpy as np
import pytest

from surgery.passes.weights.weight_cast import WeightCast
from surgery.passes.weights.weight_transpose import WeightTranspose

BEFORE = """
g (float[N,5] x, float[3,5] w_weight) => (float[N,3] y) {
  turned = Transpose<perm = [1, 0]>(w_weight)
  y = MatMul(x, turned)
}
"""


def make():
    return WeightTranspose()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_an_activation(build, untouched):
    text = BEFORE.replace("w_weight", "w")
    untouched(make(), build(text), "")


def test_no_axes_swapped(build, untouched):
    text = BEFORE.replace("float[3,5] w_weight", "float[5,3] w_weight")
    text = text.replace("[1, 0]", "[0, 1]")
    untouched(make(), build(text), "axes swapped")


def test_three_axes(build, untouched):
    text = BEFORE.replace("float[3,5] w", "float[3,5,2] w").replace("[1, 0]", "[2, 1, 0]")
    text = text.replace("(float[N,3] y)", "(float[2,N,3] y)")
    untouched(make(), build(text), "the last two axes swapped")


def test_a_stack_of_matrices(build, same_numbers, rng):
    text = BEFORE.replace("float[3,5] w", "float[2,3,5] w").replace("[1, 0]", "[0, 2, 1]")
    model = build(text.replace("(float[N,3] y)", "(float[2,N,3] y)"))
    stored = model.graph.initializers["w_weight"].const_value.numpy()
    inputs = [{"x": rng.standard_normal((n, 5)).astype(np.float32)} for n in (1, 4)]
    same_numbers(make(), model, inputs, rtol=1e-6, atol=1e-6)
    assert np.array_equal(
        model.graph.initializers["w_weight"].const_value.numpy(), stored.swapaxes(1, 2)
    )


def test_a_small_constant(build, untouched):
    text = BEFORE.replace(", float[3,5] w_weight", "")
    text = text.replace("y) {", "y) <float[1,5] c = {1,2,3,4,5}> {").replace("(w_weight)", "(c)")
    untouched(make(), build(text.replace("float[N,3]", "float[N,1]")), "a weight of the checkpoint")


@pytest.mark.parametrize("other", [
    "second = Transpose<perm = [1, 0]>(w_weight)",
    "s = ReduceSum(w_weight)\n  second = Mul(turned, s)",
], ids=["turned twice", "read as it lies"])  # fmt: skip
def test_weight_read_otherwise(build, untouched, other):
    text = BEFORE.replace(
        "y = MatMul(x, turned)",
        f"""a = MatMul(x, turned)
  {other}
  b = MatMul(x, second)
  y = Add(a, b)""",
    )
    untouched(make(), build(text), "w_weight read by this Transpose alone")


@pytest.mark.parametrize("perm", ["<perm = [1, 0]>", ""])
def test_numbers(build, same_numbers, rng, perm):
    inputs = [{"x": rng.standard_normal((n, 5)).astype(np.float32)} for n in (0, 1, 4, 9)]
    model = build(BEFORE.replace("<perm = [1, 0]>", perm))
    stored = model.graph.initializers["w_weight"].const_value.numpy()
    same_numbers(make(), model, inputs, rtol=1e-6, atol=1e-6)
    turned = model.graph.initializers["w_weight"]
    assert np.array_equal(turned.const_value.numpy(), stored.T)
    assert list(turned.shape) == [5, 3]


def test_after_cast(build, run, rng):
    """Cast and transposed: numbers as the weight lies, each cast once."""
    text = BEFORE.replace("float[3,5] w_weight", "bfloat16[3,5] w_weight")
    text = text.replace("turned =", "w = Cast<to = 1>(w_weight)\n  turned =")
    model = build(text.replace("](w_weight)", "](w)").replace(">(w_weight)\n  y", ">(w)\n  y"))
    feeds = {"x": rng.standard_normal((4, 5)).astype(np.float32)}
    want = run(model, feeds)["y"]
    WeightCast()(model)
    make()(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_allclose(run(model, feeds)["y"], want, rtol=1e-6, atol=1e-6)
