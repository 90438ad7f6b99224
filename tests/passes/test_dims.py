"""Canonical symbolic dimensions."""

import onnx_ir as ir
import pytest

from surgery.passes.tidy.dims import Dims

BEFORE = """
g (float[B,K,D] past, float[B,S,D] x) => (float[B,T,D] y) {
  joined = Concat<axis = 1>(past, x)
  y = Neg(joined)
}
"""


def prepare(model):
    """Spell the length that is joined in two ways; ONNX text takes names only."""
    joined, y = (node.outputs[0] for node in model.graph)
    joined.shape = ir.Shape(["batch", "sequence + past", "D"])
    y.shape = ir.Shape(["batch", "past+sequence", "D"])


def make():
    return Dims({"past + sequence": "total"})


def test_golden(build, golden):
    model = build(BEFORE)
    prepare(model)
    golden(make(), model)
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[batch,total,D]"] * 2


@pytest.mark.parametrize(("dim", "spelled"), [
    ("sequence + past", "total"), ("past+sequence", "total"), ("past + sequence", "total"),
    ("b*4", "4*b"), ("2*(a + b)", "2*a + 2*b"), ("a + a", "2*a"), ("S", "S"), ("E*2", "2*E"),
    ("N + Q", "N + Q"), ("total", "total"), ("a + b - b", "a"),
    ("48", 48), ("2*24", 48), ("n - n", 0),
])  # fmt: skip
def test_spelling(dim, spelled):
    work = make()
    assert work.canonical(dim) == spelled
    assert work.canonical(str(spelled)) == spelled


@pytest.mark.parametrize(
    "dim", ["Max(a, b)", "a.b", "a b", "batch-", "x[0]", "lambda", "a?", "()", "f(x).y", "None"]
)
def test_not_an_expression(dim):
    """What is no sum or product of names stays as it is; nothing is evaluated."""
    assert make().canonical(dim) == dim


@pytest.mark.parametrize("dims", [["batch", "past", 4], [None, None, None], [1, "total", 2]])
def test_near_miss(build, untouched, dims):
    model = build(BEFORE)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(dims)
    untouched(make(), model, "")


def test_without_alias(build):
    model = build(BEFORE)
    prepare(model)
    Dims()(model)
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[batch,past + sequence,D]"] * 2


TABLE = """
g (float[B,S,4] x, float[1,U,4] rows) => (float[B,S,4] y) { y = Add(x, rows) }
"""


@pytest.mark.parametrize(("dim", "found"), [
    ("Min(512, S)", "S"), ("Min(S, 512)", "S"), ("Min(1, S)", "Min(1, S)"),
    ("Min(512, T)", "Min(512, T)"), ("Max(512, S)", "Max(512, S)"),
])  # fmt: skip
def test_bounded_by_a_table(build, dim, found):
    """What is added to S rows has S rows, though a table bounds it."""
    model = build(TABLE)
    model.graph.inputs[1].shape = ir.Shape([1, dim, 4])
    Dims()(model)
    assert str(model.graph.inputs[1].shape) == f"[1,{found},4]"


def test_a_number_holds_for_every_spelling(build):
    """A weight fixes the length in one spelling; the others become the same number at once."""
    text = """
    g (float[B,S,6] x, float[B,S,6] z, float[6,2] w) => (float[B,S,2] y, float[B,S,6] n) {
      y = MatMul(x, w)
      n = Neg(z)
    }
    """
    model = build(text)
    for value, dim in zip(model.graph.inputs[:2], ("2*(a + b)", "a*2 + b*2")):
        value.shape = ir.Shape(["B", "S", dim])
    Dims()(model)
    assert [str(value.shape) for value in model.graph.inputs[:2]] == ["[B,S,6]"] * 2


@pytest.mark.parametrize("dim", ["floor(24*n/floor(n/4))", "24*n//(n//4)"])
def test_a_quotient_beside_a_table_in_any_spelling(build, dim):
    """A weight that multiplies a reshaped value fixes its width, however the width is written."""
    text = "g (float[S,D] x, float[S,D] z) => (float[S,96] y) <float[96] w = {1.0}> {y = Mul(x, w)}"
    model = build(text.replace("{1.0}", "{" + ", ".join(["1.0"] * 96) + "}"))
    x = model.graph.inputs[0]
    x.shape = ir.Shape(["n", dim])
    Dims()(model)
    assert str(x.shape) == "[n,96]"
