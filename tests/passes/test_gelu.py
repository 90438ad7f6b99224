"""GELU as one node."""

import numpy as np
import pytest

from surgery.passes.mlp.gelu import Gelu

BEFORE = """
g (float[B,S,6] up, float[B,S,6] more) => (float[B,S,6] y, float[B,S,6] z)
<float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3},
 float small = {0.044715}, float wide = {0.7978846}> {
  x = Neg(up)
  scaled = Div(x, root)
  error = Erf(scaled)
  lifted = Add(error, one)
  product = Mul(x, lifted)
  y = Mul(product, half)
  w = Neg(more)
  cube = Pow(w, three)
  part = Mul(cube, small)
  sum = Add(w, part)
  inner = Mul(sum, wide)
  bent = Tanh(inner)
  raised = Add(bent, one)
  halved = Mul(w, half)
  z = Mul(halved, raised)
}
"""
ONE = """
g (float[B,S,6] up) => (float[B,S,6] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}> {
  x = Neg(up)
  scaled = Div(x, root)
  error = Erf(scaled)
  lifted = Add(error, one)
  product = Mul(x, lifted)
  y = Mul(product, half)
}
"""
MISSES = [
    ("half = {0.5}", "half = {0.51}", "the curve of GELU"),
    ("root = {1.4142135}", "root = {1.5}", "the curve of GELU"),
    ("one = {1}", "one = {2}", "the curve of GELU"),
    ("Mul(x, lifted)", "Mul(up, lifted)", "the curve of GELU"),
    ("y = Mul(product, half)", "z = Mul(product, half)\n  y = Add(z, scaled)",
     "a curve that nothing else reads into"),
    ("=> (float[B,S,6] y)", "=> (float[B,S,6] y, float[B,S,6] error)", ""),
]  # fmt: skip


def make():
    return Gelu()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in ONE
    untouched(make(), build(ONE.replace(old, new)), reason)


def test_numbers(build, same_numbers, rng):
    inputs = [
        {name: (3 * rng.standard_normal((*shape, 6))).astype(np.float32) for name in ("up", "more")}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    edge = np.array([-100, -6, -0.0, 0, 6, 100], np.float32).reshape(1, 1, 6)
    inputs.append({"up": edge, "more": edge})
    same_numbers(make(), build(BEFORE), inputs, rtol=1e-5, atol=1e-6)
