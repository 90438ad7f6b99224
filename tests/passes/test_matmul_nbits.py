"""Products with quantized weights."""

import numpy as np
import onnx_ir as ir
import pytest

import quant
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.passes.weights.weight_cast import WeightCast

BEFORE = """
g (float[B,S,64] x, float[24,64] a_weight, float[64,24] b_weight) => (float[B,S,24] y) {
  turned = Transpose<perm = [1, 0]>(a_weight)
  a = MatMul(x, turned)
  b = MatMul(x, b_weight)
  y = Add(a, b)
}
"""
ONE = """
g (float[B,S,64] x, float[24,64] a_weight) => (float[B,S,24] y) {
  turned = Transpose<perm = [1, 0]>(a_weight)
  y = MatMul(x, turned)
}
"""
FORMATS = [quant.BlockFormat(bits, block, symmetric) for bits, block, symmetric in (
    (4, 32, True), (4, 32, False), (4, 16, False), (8, 32, True), (8, 128, False), (4, 64, True),
)]  # fmt: skip
MISSES = [
    ("float[24,64] a_weight", "float[24,64] a", ""),
    ("Transpose<perm = [1, 0]>(a_weight)", "Neg(a_weight)", ""),
    ("perm = [1, 0]", "perm = [0, 1]", "axes swapped"),
    ("float[24,64] a_weight", "float[2,24,64] a_weight", "of rank 2"),
    ("float[24,64] a_weight", "float[24,64] kept_weight", "a weight that the policy quantizes"),
]


def policy(name):
    return None if name.startswith("kept") else FORMATS[0]


def make():
    return MatMulNBits(policy)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in ONE
    text = ONE.replace(old, new)
    if "kept" in new:
        text = text.replace("a_weight", "kept_weight")
    if new.endswith("] a"):
        text = text.replace("(a_weight)", "(a)")
    if "[2,24" in new:
        text = text.replace("[1, 0]", "[0, 2, 1]").replace("B,S", "2,S")
    if "Neg" in new or "[0, 1]" in new:
        text = text.replace("[24,64] a_w", "[64,24] a_w")
    untouched(make(), build(text), reason)


def unpacked(model, name, form, k):
    """What the stored bytes stand for."""
    parts = [
        model.graph.initializers[f"{name}.{part}"].const_value.numpy()
        for part in ("packed", "scales", "zero_points")[: 2 if form.symmetric else 3]
    ]
    return quant.dequantize(quant.Blocks(*parts, *([None] if form.symmetric else []), form, k))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_numbers(build, run, rng, form):
    """The op computes with exactly what unpacking says, on unseen shapes."""
    model = build(BEFORE)
    stored = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    work = MatMulNBits(lambda name: form)
    work(model)
    assert work.count == 2
    a = quant.dequantize(quant.quantize(stored["a_weight"], form))
    b = quant.dequantize(quant.quantize(np.ascontiguousarray(stored["b_weight"].T), form))
    assert np.array_equal(unpacked(model, "a_weight", form, 64), a)
    assert np.array_equal(unpacked(model, "b_weight", form, 64), b)
    for shape in ((1, 1), (3, 5), (2, 33)):
        x = rng.standard_normal((*shape, 64)).astype(np.float32)
        got = run(model, {"x": x})["y"]
        np.testing.assert_allclose(got, x @ a.T + x @ b.T, rtol=1e-5, atol=2e-5)


def test_padded_columns(build, run, rng):
    """K that the block size does not divide."""
    model = build(ONE.replace("64]", "40]"))
    stored = model.graph.initializers["a_weight"].const_value.numpy()
    make()(model)
    weight = quant.dequantize(quant.quantize(stored, FORMATS[0]))
    x = rng.standard_normal((2, 3, 40)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x})["y"], x @ weight.T, rtol=1e-5, atol=2e-5)


def test_from_bfloat16(build):
    """A widening cast before quantizing changes no byte."""
    text = ONE.replace("float[24,64] a_weight", "bfloat16[24,64] a_weight")
    text = text.replace("  turned =", "  w = Cast<to = 1>(a_weight)\n  turned =")
    model = build(text.replace("](w", "](w").replace(">(a_weight)\n  y", ">(w)\n  y"))
    stored = model.graph.initializers["a_weight"].const_value.numpy()
    WeightCast()(model)
    make()(model)
    want = quant.quantize(stored.astype(np.float32), FORMATS[0])
    parts = model.graph.initializers
    assert np.array_equal(parts["a_weight.packed"].const_value.numpy(), want.packed)
    assert np.array_equal(parts["a_weight.scales"].const_value.numpy(), want.scales)


def test_attributes(build):
    model = build(ONE)
    MatMulNBits(policy, accuracy_level=4, scales=ir.DataType.FLOAT16)(model)
    (node,) = model.graph
    found = {name: attribute.value for name, attribute in node.attributes.items()}
    assert found == {"N": 24, "K": 64, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert model.graph.initializers["a_weight.scales"].dtype == ir.DataType.FLOAT16


def test_one_weight_twice(build):
    """Two products with one weight share its blocks."""
    text = ONE.replace("y = MatMul(x, turned)", "z = Neg(x)\n  a = MatMul(x, turned)\n"
                       "  b = MatMul(z, turned)\n  y = Add(a, b)")  # fmt: skip
    model, work = build(text), make()
    work(model)
    assert work.count == 2
    assert sorted(model.graph.initializers) == ["a_weight.packed", "a_weight.scales"]
