"""Products of integers in place of products with weights."""

import numpy as np
import onnx_ir as ir
import pytest

import quant
from surgery.passes.quantized.matmul_int8 import MatMulInt8
from surgery.passes.weights.weight_cast import WeightCast
from surgery.rewrite import view
from surgery.rewrite.float_activations import float_activations

BEFORE = """
g (float[M,64] x, float[24,64] a_weight, float[64,24] b_weight, float[64,24] c_weight)
    => (float[M,24] y) {
  turned = Transpose<perm = [1, 0]>(a_weight)
  a = MatMul(x, turned)
  b = MatMul(x, b_weight)
  up = Gelu(x)
  c = MatMul(up, c_weight)
  ab = Add(a, b)
  y = Add(ab, c)
}
"""
ONE = """
g (float[M,64] x, float[64,24] a_weight) => (float[M,24] y) {
  y = MatMul(x, a_weight)
}
"""
MISSES = [
    ("a_weight", "b", ""),
    ("a_weight", "kept_weight", "a weight that is to be quantized"),
    ("float[M,64] x", "float[64] x", "a known rank of 2 or more"),
    ("float", "float16", "float32 activations"),
    ("[64,24] a_weight", "[3,64,24] a_weight", ""),
]


def make():
    return MatMulInt8(lambda name: not name.startswith("kept"))


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in ONE
    text = ONE.replace(old, new)
    if "[3," in new:
        text = text.replace("[M,", "[3,M,")
    if new == "float[64] x":
        text = text.replace("[M,24] y", "[24] y")
    untouched(make(), build(text), reason)


def rows(rng, m):
    """Rows of very unlike sizes, one of zeros among them where there are several."""
    x = rng.standard_normal((m, 64)).astype(np.float32) * np.exp(rng.uniform(-9, 9, (m, 1)))
    x[1:2] = 0
    return {"x": x.astype(np.float32)}


def codes_of(x, zero):
    """The definition: codes and scales of rows."""
    above, below = (np.float32(1 / last) for last in (255 - zero, -zero))
    scales = np.maximum(np.maximum(x.max(1) * above, x.min(1) * below), np.float32(2.0**-100))
    return np.clip(np.rint(x / scales[:, None]) + zero, 0, 255).astype(int), scales[:, None]


@pytest.mark.parametrize("m", [1, 2, 17, 300])
def test_numbers(build, run, rng, m):
    """The op computes what the definition says, on unseen numbers of rows."""
    model, feed = build(BEFORE), rows(rng, m)
    weights = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    gelu = ONE.replace("MatMul(x, a_weight)", "Gelu(x)").replace("[M,24] y", "[M,64] y")
    up = run(build(gelu), feed)["y"]
    work = make()
    work(model)
    assert work.count == 3
    found = run(model, feed)["y"]
    wanted = 0
    for name, x, zero in (("a", feed["x"], 128), ("b", feed["x"], 128), ("c", up, 32)):
        weight = weights[f"{name}_weight"] if name == "a" else weights[f"{name}_weight"].T
        kept = quant.quantize_channels(weight)
        codes, scales = codes_of(x, zero)
        wanted = wanted + (codes - zero) @ kept.codes.T.astype(int) * scales * kept.scales
    largest = np.abs(wanted).max(1, keepdims=True)
    assert (np.abs(found - wanted) <= 1e-5 * largest).all()


def test_the_result_of_a_row_is_its_own(build, run, rng):
    """Bit for bit, whatever the other rows are."""
    model = build(BEFORE)
    make()(model)
    feed = rows(rng, 33)
    together = run(model, feed)["y"]
    for i in (0, 1, 32):
        alone = run(model, {"x": feed["x"][i : i + 1]})["y"]
        assert np.array_equal(alone[0], together[i])


@pytest.mark.parametrize("text", [BEFORE, ONE])
def test_in_float_it_is_the_product_with_the_unpacked_weights(build, run, rng, text):
    model, feed = build(text), {"x": rng.standard_normal((9, 64)).astype(np.float32)}
    for value in model.graph.initializers.values():
        weight = value.const_value.numpy()
        turned = text == ONE or value.name != "a_weight"
        numbers = quant.quantize_channels(weight.T if turned else weight).weight()
        value.const_value = ir.tensor(np.ascontiguousarray(numbers.T if turned else numbers))
    wanted = run(model, feed)["y"]
    model = build(text)
    make()(model)
    float_activations(model)
    assert not {"QuantizeLinear", "MatMulIntegerToFloat"} & {n.op_type for n in model.graph}
    found = run(model, feed)["y"]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


FOREIGN = """
g (uint8[M,64] codes, float[M,1] scales) => (float[M,24] y)
    <int8[64,24] weight = {WEIGHT}, float one = {1}, uint8 zero = {128}> {
  sums = com.microsoft.MatMulIntegerToFloat(codes, weight, one, one, zero)
  y = Mul(sums, scales)
}
""".replace("WEIGHT", ", ".join(["3"] * 64 * 24))


def test_integer_products_of_other_graphs_stay(build):
    """Nothing tells which float rows their codes come from."""
    model = build(FOREIGN)
    before = view.text(model)
    float_activations(model)
    assert view.diff(before, view.text(model)) == ""


BRANCHES = """
g (float[M,64] x, bool first, float[64,24] a_weight, float[64,24] b_weight, float[64,24] c_weight)
    => (float[M,24] y) {
  chosen = If (first) <
    then_branch = one () => (float[M,24] a) { a = MatMul(x, a_weight) },
    else_branch = two () => (float[M,24] b) { b = MatMul(x, b_weight) }
  >
  c = MatMul(x, c_weight)
  y = Add(chosen, c)
}
"""


@pytest.mark.parametrize("first", [True, False])
def test_branches_share_no_codes(build, run, rng, first):
    """A value of one branch is not there in the other."""
    x = rng.standard_normal((5, 64)).astype(np.float32)
    model, work = build(BRANCHES), make()
    wanted = run(model, {"x": x, "first": np.array(first)})["y"]
    work(model)
    assert work.count == 3
    found = run(model, {"x": x, "first": np.array(first)})["y"]
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("outer", [(1, 1), (3, 5), (2, 1, 7)])
def test_other_ranks_are_flattened(build, run, rng, outer):
    """The numbers are those of the rows; products of one x share the flattened rows."""
    names = ",".join("ABC"[: len(outer)])
    x = rng.standard_normal((*outer, 64)).astype(np.float32)
    found = []
    for text, feed in ((BEFORE, x.reshape(-1, 64)), (BEFORE.replace("[M,", f"[{names},"), x)):
        model, work = build(text), make()
        work(model)
        assert work.count == 3
        made = [node.op_type for node in model.graph]
        assert made.count("QuantizeLinear") == 2 and made.count("Reshape") in (0, 5)
        found.append(run(model, {"x": feed})["y"])
    assert found[1].shape == (*outer, 24)
    assert np.array_equal(found[0], found[1].reshape(-1, 24))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_read_as_stored(build, dtype):
    """A cast to float32 before the product disappears."""
    text = ONE.replace("float[64,24] a_weight", f"{dtype}[64,24] a_weight")
    cast = "wide = Cast<to = 1>(a_weight)\n  y = MatMul(x, wide)"
    model = build(text.replace("y = MatMul(x, a_weight)", cast))
    WeightCast()(model)
    work = make()
    work(model)
    assert work.count == 1
    assert "Cast" not in {node.op_type for node in model.graph}
