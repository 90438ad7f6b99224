"""Two forms of a graph: for long inputs, and for short ones."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.package.external_data import write_graphs
from surgery.passes.quantized.long_input import LongInput
from surgery.passes.quantized.matmul_int8 import MatMulInt8
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.rewrite.float_activations import float_activations
from surgery.rewrite.two_forms import LIMIT

BEFORE = """
g (float[B,S,32] x, float[B,1,P,32] past, float[32,32] up_weight, float[32,32] down_weight,
   float[48,32] head_weight)
    => (float[B,S,48] logits, float[B,1,T,32] present) <int64[1] one = {1}> {
  up = Transpose<perm = [1, 0]>(up_weight)
  high = MatMul(x, up)
  keys = Unsqueeze(high, one)
  present = Concat<axis = 2>(past, keys)
  gate = Sigmoid(high)
  low = MatMul(gate, down_weight)
  sum = Add(x, low)
  head = Transpose<perm = [1, 0]>(head_weight)
  raw = MatMul(sum, head)
  logits = Tanh(raw)
}
"""
NESTED = """
g (float[B,S,32] x, bool first, float[32,32] a_weight, float[48,32] head_weight)
    => (float[B,S,48] logits) {
  a = MatMul(x, a_weight)
  chosen = If (first) <
    then_branch = one () => (float[B,S,32] b) { b = Neg(a) },
    else_branch = two () => (float[B,S,32] c) { c = Exp(a) }
  >
  head = Transpose<perm = [1, 0]>(head_weight)
  logits = MatMul(chosen, head)
}
"""


def make():
    return LongInput(lambda name: not name.startswith("head"))


def feed(rng, batch, length, past=3):
    return {
        "x": rng.standard_normal((batch, length, 32)).astype(np.float32),
        "past": rng.standard_normal((batch, 1, past, 32)).astype(np.float32),
    }


def test_golden(build, golden):
    golden(make(), build(BEFORE))


ROWS = """
g (float[B,S,32] x, float[N,32] rows, float[32,32] a_weight) => (float[N,32] y) {
  y = MatMul(rows, a_weight)
}
"""
OTHER = """
g (float[B,1,32] x, float[32,32] a_weight) => (float[B,S,32] y)
    <int64[3] times = {1, 7, 1}> {
  many = Tile(x, times)
  y = MatMul(many, a_weight)
}
"""


def test_near_misses(build, untouched):
    untouched(make(), build(ROWS), "rows of rank 3")
    other = build(OTHER)
    next(node for node in other.graph if node.op_type == "Tile").outputs[0].shape = ir.Shape(
        ["B", "S", 32]
    )
    untouched(make(), other, "an input of the graph whose first axes are")


def test_weights_that_are_left_out(build, untouched):
    untouched(LongInput(lambda name: False), build(BEFORE), "")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 15, 16, 40])
def test_numbers(build, run, rng, batch, length):
    """Bit-equal on both sides of the limit, whatever the batch."""
    fed = feed(rng, batch, length)
    wanted = run(build(BEFORE), fed)
    model = build(BEFORE)
    make()(model)
    found = run(model, fed)
    for name, array in wanted.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("length", [5, 20])
@pytest.mark.parametrize("first", [True, False])
def test_a_body_with_branches_of_its_own(build, run, rng, length, first):
    fed = feed(rng, 2, length) | {"first": np.array(first)}
    wanted = run(build(NESTED), fed)["logits"]
    model = build(NESTED)
    work = make()
    work(model)
    assert work.count == 1
    assert [node.op_type for node in model.graph if node.op_type == "If"] == ["If"]
    assert np.array_equal(run(model, fed)["logits"], wanted)


def test_what_moves(build):
    """All but the head, which both forms share, with its weight."""
    model = build(BEFORE)
    make()(model)
    ops = [node.op_type for node in model.graph]
    assert sorted(ops) == sorted(["Shape", "GreaterOrEqual", "If", "Transpose", "MatMul", "Tanh"])
    long, short = (attribute.as_graph() for attribute in choice(model).attributes.values())
    assert [node.op_type for node in long] == [node.op_type for node in short]
    assert not {v.name for n in long for v in n.outputs} & {
        v.name for n in short for v in n.outputs
    }
    assert set(model.graph.initializers) == {
        *("up_weight", "down_weight", "up_weight.long", "down_weight.long", "head_weight"),
        *("one", LIMIT),
    }


def choice(model):
    return next(node for node in model.graph if node.op_type == "If")


def test_a_weight_is_written_once(build, tmp_path):
    """Under both names, until one of them is quantized."""
    model = build(BEFORE)
    make()(model)
    layout = write_graphs({"g.onnx": model}, tmp_path)
    assert sum(layout.sizes.values()) == 2 * 32 * 32 * 4 + 48 * 32 * 4
    long, short = (model.graph.initializers[n].const_value for n in ("up_weight.long", "up_weight"))
    assert (long.location, long.offset) == (short.location, short.offset)


def both(build):
    """The graph with 8 bits for long inputs, 4 for short ones, and 4 for the head."""
    model = build(BEFORE)
    make()(model)
    MatMulInt8(lambda name: name.endswith(".long"), expect=2)(model)
    MatMulNBits(bits=4, block=32, expect=3)(model)
    return model


def test_each_form_has_its_own_quantization(build):
    model = both(build)
    long, short = (
        {node.op_type for node in attribute.as_graph()}
        for attribute in choice(model).attributes.values()
    )
    assert "MatMulIntegerToFloat" in long and "MatMulNBits" not in long
    assert "MatMulNBits" in short and "MatMulIntegerToFloat" not in short
    inner = [name for g in model.graphs() if g is not model.graph for name in g.initializers]
    assert not [name for name in inner if "weight" in name], "weights lie in the main graph"


@pytest.mark.parametrize(("length", "off"), [(4, (0.01, 0.2)), (30, (1e-4, 0.02))])
def test_long_inputs_are_nearer_to_float(build, run, rng, length, off):
    fed = feed(rng, 2, length)
    wanted = run(build(BEFORE), fed)["present"]
    found = run(both(build), fed)["present"]
    least, most = off
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert least < error < most


def test_the_result_of_a_position_is_its_own(build, run, rng):
    """In float: whichever inputs are around it, a long one is computed as a long one."""
    model = both(build)
    float_activations(model)
    fed = feed(rng, 1, 40)
    whole = run(model, fed)["logits"]
    part = run(model, fed | {"x": fed["x"][:, :20]})["logits"]
    assert np.abs(part - whole[:, :20]).max() < 1e-5
