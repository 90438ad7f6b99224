"""x * Sigmoid(x) as one node."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.passes.mlp.silu import Silu

BEFORE = """
g (float[B,S,6] x, float[B,S,6] up) => (float[B,S,6] y) {
  gate = Sigmoid(x)
  act = Mul(x, gate)
  y = Mul(act, up)
}
"""
MISSES = [
    ("act = Mul(x, gate)", "act = Mul(up, gate)", "x * Sigmoid(x)"),
    ("act = Mul(x, gate)", "act = Mul(gate, gate)", "x * Sigmoid(x)"),
    ("act = Mul(x, gate)", "act = Add(x, gate)", ""),
    ("Mul(act, up)", "Mul(act, gate)", ""),
    ("=> (float[B,S,6] y)", "=> (float[B,S,6] y, float[B,S,6] gate)", ""),
]


def make():
    return Silu()


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    untouched(make(), build(BEFORE.replace(old, new)), reason)


def test_other_order(build):
    work = make()
    work(build(BEFORE.replace("Mul(x, gate)", "Mul(gate, x)")))
    assert work.count == 1


def test_numbers(build, same_numbers, rng):
    inputs = [
        {name: (4 * rng.standard_normal((*shape, 6))).astype(np.float32) for name in ("x", "up")}
        for shape in ((1, 1), (3, 5), (2, 17))
    ]
    edge = np.array([-100, -20, -0.0, 0, 20, 100], np.float32).reshape(1, 1, 6)
    inputs.append({"x": edge, "up": np.ones_like(edge)})
    same_numbers(make(), build(BEFORE), inputs, rtol=2e-6, atol=1e-7)


BRANCH = """
g (bool choice, float[B,S,6] x, float[B,S,6] up) => (float[B,S,6] y) {
  y = If (choice) <
    then_branch = yes () => (float[B,S,6] a) { gate = Sigmoid(x)
      a = Mul(x, gate) },
    else_branch = no () => (float[B,S,6] b) { b = Identity(up) }
  >
}
"""


def test_in_a_branch(build):
    """A branch that uses onnxruntime's op: the model imports its domain."""
    model = build(BRANCH)
    work = make()
    work(model)
    assert work.count == 1
    assert model.opset_imports["com.microsoft"] == 1
    onnx.checker.check_model(ir.to_proto(model))
