"""A mixture of experts as one node."""

import numpy as np
import onnx_ir as ir
import pytest

from surgery.passes.mlp.mixture_of_experts import MixtureOfExperts
from surgery.passes.weights.weight_cast import WeightCast
from surgery.rewrite.weights import Cast, source_of

E, H, INNER, K = 6, 16, 24, 2

BEFORE = """
g (float[B,S,16] x, float[6,16] router_weight, float[6,16,48] both_weight,
   float[6,24,16] down_weight) => (float[B,S,16] y)
  <int64[1] k = {2}, int64[1] last = {-1}, int64[1] two = {2}, int64[1] zero = {0},
   int64[1] half = {24}, int64[1] end = {48}, int64[2] rows = {-1, 16}, int64[2] flat = {0, 144},
   int64[2] stacked = {144, 16}> {
  t = Reshape(x, rows)
  logits = Gemm<transB = 1>(t, router_weight)
  p = Softmax<axis = -1>(logits)
  largest, index = TopK(p, k)
  total = ReduceSum<keepdims = 1>(largest, last)
  scaled = Div(largest, total)
  size = Shape(p)
  zeros = ConstantOfShape(size)
  scores = ScatterElements<axis = 1>(zeros, index, scaled)
  every = Unsqueeze(t, zero)
  both = MatMul(every, both_weight)
  gate = Slice(both, zero, half, two)
  up = Slice(both, half, end, two)
  s = Sigmoid(gate)
  act = Mul(gate, s)
  turned = Transpose<perm = [1, 0]>(scores)
  spread = Unsqueeze(turned, two)
  weighted = Mul(up, spread)
  gated = Mul(act, weighted)
  order = Transpose<perm = [1, 0, 2]>(gated)
  inner = Reshape(order, flat)
  down = Reshape(down_weight, stacked)
  out = MatMul(inner, down)
  shape = Shape(x)
  y = Reshape(out, shape)
}
"""
TURNED = (
    BEFORE.replace("float[6,16,48] both_weight", "float[6,48,16] both_weight")
    .replace("float[6,24,16] down_weight", "float[6,16,24] down_weight")
    .replace("  every =", "  b = Transpose<perm = [0, 2, 1]>(both_weight)\n  every =")
    .replace("MatMul(every, both_weight)", "MatMul(every, b)")
    .replace("  down =", "  d = Transpose<perm = [0, 2, 1]>(down_weight)\n  down =")
    .replace("Reshape(down_weight, stacked)", "Reshape(d, stacked)")
)
"""Weights as transformers holds them."""
MISSES = [
    ("s = Sigmoid(gate)", "s = Sigmoid(up)", "x * Sigmoid(x)"),
    ("act = Mul(gate, s)", "act = Relu(gate)", "from Mul; found Relu"),
    ("Div(largest, total)", "Mul(largest, total)", "read by one Div alone"),
    ("Div(largest, total)", "Div(total, largest)", "scores divided by their sum"),
    ("TopK(p, k)", "TopK<largest = 0>(p, k)", "the largest"),
    ("Softmax<axis = -1>", "Softmax<axis = 0>", "Softmax over the experts"),
    ("p = Softmax<axis = -1>(logits)", "p = Sigmoid(logits)", ""),
    ("Slice(both, half, end, two)", "Slice(both, zero, half, two)", "the second half"),
    ("Mul(up, spread)", "Mul(gate, spread)", "the second half"),
    ("ReduceSum<keepdims = 1>(largest, last)", "ReduceSum<keepdims = 1>(largest, zero)", "axes"),
    ("ScatterElements<axis = 1>(zeros", "ScatterElements<axis = 1>(p", "from ConstantOfShape"),
    ("perm = [1, 0, 2]", "perm = [0, 1, 2]", "tokens first"),
    ("float[6,16,48] both_weight", "float[6,16,48] both", "both from Transpose"),
    ("y = Reshape(out, shape)", "z = ReduceSum(both_weight)\n  o = Add(out, z)\n"
     "  y = Reshape(o, shape)", "read by the experts alone"),
]  # fmt: skip


def make():
    return MixtureOfExperts()


def prepare(model):
    """Shapes that inference does not find."""
    known = {"y": ("B", "S", H), "both": (E, "T", 2 * INNER), "logits": ("T", E)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in known:
                value.shape = ir.Shape(known[value.name])


@pytest.fixture
def prepared(build):
    def make_graph(text):
        model = build(text)
        prepare(model)
        return model

    return make_graph


def test_golden(prepared, golden):
    golden(make(), prepared(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(prepared, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if new.endswith("] both"):
        text = text.replace("both_weight", "given").replace("] both,", "] given,")
        reason = reason.replace("both from", "given from")
    untouched(make(), prepared(text), reason)


def tokens(rng):
    return [{"x": rng.standard_normal((*s, H)).astype(np.float32)} for s in
            ((1, 1), (1, 7), (3, 5), (2, 40), (0, 3))]  # fmt: skip


@pytest.mark.parametrize("text", [BEFORE, TURNED], ids=["as published", "as transformers holds"])
def test_numbers(prepared, same_numbers, rng, text):
    same_numbers(make(), prepared(text), tokens(rng)[:4], rtol=1e-5, atol=1e-5)


def test_against_a_loop_over_the_chosen(prepared, run, rng):
    """Each token by the experts that it chooses, one after the other, in float64."""
    model = prepared(BEFORE)
    router, both, down = (
        model.graph.initializers[f"{name}_weight"].const_value.numpy().astype(np.float64)
        for name in ("router", "both", "down")
    )
    make()(model)
    assert "MoE" in {node.op_type for node in model.graph}
    (feeds,) = tokens(rng)[1:2]
    x = feeds["x"].reshape(-1, H).astype(np.float64)
    want = np.zeros_like(x)
    for token, row in enumerate(x):
        logits = router @ row
        chosen = np.argsort(-logits)[:K]
        scores = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        for expert, score in zip(chosen, scores, strict=True):
            gate, up = np.split(row @ both[expert], 2)
            want[token] += score * (gate / (1 + np.exp(-gate)) * up) @ down[expert]
    np.testing.assert_allclose(run(model, feeds)["y"].reshape(-1, H), want, rtol=1e-5, atol=1e-5)


def test_weights_keep_names_and_change_rows(prepared):
    model = prepared(BEFORE)
    before = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if "w" in n}
    make()(model)
    both, down = (model.graph.initializers[f"{n}_weight"].const_value.numpy() for n in
                  ("both", "down"))  # fmt: skip
    assert np.array_equal(down, before["down_weight"].swapaxes(1, 2))
    assert np.array_equal(both[:, 0::2], before["both_weight"].swapaxes(1, 2)[:, :INNER])
    assert np.array_equal(both[:, 1::2], before["both_weight"].swapaxes(1, 2)[:, INNER:])


def test_flat_rows_stay_flat(prepared, same_numbers, rng):
    """Where the result is not brought back to the shape of the input, the op works on rows."""
    text = BEFORE.replace("float[B,S,16] y", "float[T,16] out").split("  shape =")[0] + "}"
    model = prepared(text)
    same_numbers(make(), model, tokens(rng)[:4], rtol=1e-5, atol=1e-5)
    (node,) = (node for node in model.graph if node.op_type == "MoE")
    assert node.inputs[0].name == "t"


def test_after_cast(prepared, run, rng):
    """Weights in bfloat16: moved as they lie, each number cast once."""
    text = BEFORE.replace("float[6,16,48] both_weight", "bfloat16[6,16,48] both_weight")
    text = text.replace("  every =", "  wide = Cast<to = 1>(both_weight)\n  every =")
    model = prepared(text.replace("MatMul(every, both_weight)", "MatMul(every, wide)"))
    feeds = tokens(rng)[2]
    want = run(model, feeds)["y"]
    WeightCast()(model)
    make()(model)
    assert isinstance(source_of(model.graph.initializers["both_weight"]), Cast)
    np.testing.assert_allclose(run(model, feeds)["y"], want, rtol=1e-5, atol=1e-5)
