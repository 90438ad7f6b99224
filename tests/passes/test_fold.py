"""Constant folding."""

import numpy as np
import onnx
import pytest

from surgery.engine.loading import load_any
from surgery.passes.tidy.fold import Fold
from surgery.rewrite import view

BEFORE = """
g (float[B,24] x, bfloat16[24] a_weight, bfloat16[24] b_weight) => (float[B,12,2] y) {
  two = Constant<value = int64[1] {2}>()
  three = Constant<value = int64[1] {3}>()
  one = Sub(three, two)
  twelve = Constant<value = int64[1] {12}>()
  rows = Mul(one, twelve)
  rest = Constant<value_ints = [-1]>()
  shape = Concat<axis = 0>(rest, rows, two)
  same = Identity(x)
  a = Cast<to = 1>(a_weight)
  a2 = Cast<to = 1>(a_weight)
  b = Cast<to = 1>(b_weight)
  dead = Exp(x)
  left = Mul(same, a)
  right = Mul(x, a2)
  both = Add(left, right)
  all = Add(both, b)
  y = Reshape(all, shape)
}
"""


def make():
    return Fold()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


def test_numbers(build, same_numbers, rng):
    inputs = [{"x": rng.standard_normal((n, 24)).astype(np.float32)} for n in (1, 3, 10)]
    same_numbers(make(), build(BEFORE), inputs)


def test_weights_stay(build):
    """Weights are neither read nor merged with equal ones."""
    model = build(BEFORE)
    tensors = {n: v.const_value for n, v in model.graph.initializers.items()}
    tensors["b_weight"]._location = tensors["a_weight"]._location
    before = dict(tensors)
    make()(model)
    kept = {n: v.const_value for n, v in model.graph.initializers.items() if n in before}
    assert kept == before
    for tensor in kept.values():
        assert tensor.raw is None


LARGE = """
g (float[B,2000000] x) => (float[B,2000000] y) <int64[1] n = {2000000}, float zero = {0}> {
  many = Expand(zero, n)
  y = Add(x, many)
}
"""
NOTHING = """
g (float[B,4] x) => (float[B,4] y) <float k = {3}> {
  scaled = Mul(x, k)
  y = Add(scaled, x)
}
"""


@pytest.mark.parametrize("text", [NOTHING, LARGE], ids=["nothing constant", "result too large"])
def test_near_miss(build, untouched, text):
    untouched(make(), build(text), "")


def test_equal_constants_merge(build):
    """Equal numbers of one shape are one constant; a scalar and a row of one are two."""
    text = """
    g (float[B,4] x) => (float[B,4] y, float[B] u, float[B,1,4] v)
    <float k = {3}, float k2 = {3}, int64 i = {1}, int64[1] j = {1}> {
      a = Mul(x, k)
      y = Mul(a, k2)
      u = Gather<axis = 1>(x, i)
      v = Unsqueeze(x, j)
    }
    """
    model = build(text)
    make()(model)
    shapes = sorted(str(value.shape) for value in model.graph.initializers.values())
    assert shapes == ["[1]", "[]", "[]"]
    assert "Mul(x, 3)" in view.text(model)


LENGTHS = """
g (float[B,24,S] x, float[B,96] z) => (float[B,U,V] y, int64 n)
<int64 i = {1}, int64[1] j = {0}, int64 k = {0}, int64[1] rest = {-1}, int64[1] axis = {0}> {
  sizes = Shape(x)
  rows = Gather<axis = 0>(sizes, i)
  batch = Gather<axis = 0>(sizes, k)
  tail = Shape<start = 1>(x)
  same = Gather<axis = 0>(tail, j)
  lifted = Unsqueeze(rows, axis)
  all = Unsqueeze(batch, axis)
  both = Add(lifted, same)
  shape = Concat<axis = 0>(all, both, rest)
  y = Reshape(z, shape)
  n = Gather<axis = 0>(sizes, k)
}
"""


def test_known_lengths(build, same_numbers, rng):
    """Lengths that are fixed are numbers; those that are not stay computed."""
    model = build(LENGTHS)
    inputs = [{"x": rng.standard_normal((b, 24, s)).astype(np.float32),
               "z": rng.standard_normal((b, 96)).astype(np.float32)}
              for b, s in ((1, 1), (3, 7))]  # fmt: skip
    same_numbers(make(), model, inputs)
    ops = [node.op_type for node in model.graph]
    assert ops == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]
    assert "[48]" in view.text(model)


RANDOM = """
g (float[4] x) => (float[4] y) <float[4] chance = {0.5, 0.5, 0.5, 0.5}> {
  tossed = OP(chance)
  y = Add(x, tossed)
}
"""
SEQUENCE = """
g (int64 at) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> {
  both = SequenceConstruct(a, b)
  y = SequenceAt(both, at)
}
"""


@pytest.mark.parametrize("op", ["Bernoulli", "RandomNormalLike", "RandomUniformLike"])
def test_random_numbers_stay_random(build, untouched, op):
    untouched(make(), build(RANDOM.replace("OP", op)), "")


def test_sequences_stay(build, untouched):
    untouched(make(), build(SEQUENCE), "")


def test_a_small_weight_that_is_turned(tmp_path):
    """A weight behind a Transpose stays one: what is quantized must be known as a weight."""
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[M,32] x) => (float[M,16] y) <float[16,32] up_weight = {%s}> {
      turned = Transpose<perm = [1, 0]>(up_weight)
      y = MatMul(x, turned)
    }
    """
    model = onnx.parser.parse_model(text % ", ".join(["1"] * 512))
    onnx.save(model, tmp_path / "model.onnx")
    model = load_any(tmp_path / "model.onnx")
    assert Fold()(model).modified is False
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]
