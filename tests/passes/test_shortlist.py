"""A head in 8 bits that reads the rows of a few tokens only."""

import numpy as np
import onnx_ir as ir
import pytest

import quant
from surgery.passes.outputs.shortlist import FORMAT, Shortlist
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.rewrite.float_activations import float_activations
from surgery.rewrite.shortlists import choose_all
from surgery.verify.whole_head import with_whole_head

BEFORE = """
g (float[B,S,64] x, float[640,64] head_weight, float[64,64] inner_weight) => (float[B,1,640] y) {
  wide = MatMul(x, inner_weight)
  start = Constant<value = int64[1] {-1}>()
  end = Constant<value = int64[1] {9223372036854775807}>()
  axis = Constant<value = int64[1] {1}>()
  last = Slice(wide, start, end, axis)
  turned = Transpose<perm = [1, 0]>(head_weight)
  y = MatMul(last, turned)
}
"""
FORMATS = [quant.BlockFormat(8, 32), quant.BlockFormat(8, 64, symmetric=False)]
MISSES = [
    ("head_weight", "table_weight", ""),
    ("640", "624", "640 tokens or more"),
    ("float[640,64] head_weight", "float[640,72] head_weight", "rows of blocks of 32"),
    ("  last = Slice(wide, start, end, axis)\n", "  last = Neg(wide)\n", "one position"),
]


def make(tokens=40):
    return Shortlist(tokens, lambda name: name.startswith("head"))


def prepare(model, form=FORMATS[0], level=0):
    """Weights in 8 bits; the last position is known to be one."""
    for node in model.graph:
        if node.op_type == "Slice":
            node.outputs[0].shape = ir.Shape(("B", 1, 64))
    MatMulNBits(lambda name: form, accuracy_level=level)(model)


def prepared(build, text=BEFORE, **options):
    model = build(text)
    prepare(model, **options)
    return model


def test_golden(build, golden):
    golden(make(), prepared(build))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if "72" in new:
        text = text.replace("float[64,64] inner", "float[64,72] inner")
    if "Neg" in new:
        text = text.replace("float[B,1,640]", "float[B,S,640]")
    untouched(make(), prepared(build, text), reason)


def test_a_head_in_4_bits_stays(build, untouched):
    untouched(make(), prepared(build, form=quant.BlockFormat(4, 32)), "a weight in 8 bits")


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_numbers(build, run, rng, form, tokens):
    """Of each row of a batch, the likeliest tokens as by 8 bits, and the others as by 4."""
    model = prepared(build, form=form)
    weight = model.graph.initializers["head_weight.packed"].const_value.source.source.read(0, 640)[
        0
    ]
    inner = quant.dequantize(
        quant.quantize(
            model.graph.initializers["inner_weight.packed"].const_value.source.source.read(0, 64)[
                0
            ],
            form,
        )
    )
    assert make(tokens)(model).modified
    x = rng.standard_normal((3, 5, 64)).astype(np.float32)
    got = run(model, {"x": x})["y"]
    last = x[:, -1:] @ inner.T
    eight, four = (last @ quant.dequantize(quant.quantize(weight, f)).T for f in (form, FORMAT))
    chosen = np.argsort(-four)[..., :tokens]
    want = four.copy()
    np.put_along_axis(want, chosen, np.take_along_axis(eight, chosen, -1), -1)
    np.testing.assert_allclose(got, want, atol=1e-5 * abs(want).max())
    assert abs(eight - four).max() > 1e-3 * abs(want).max()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_with_all_tokens_it_is_the_head(build, run, rng, form):
    """Both ways in which checks leave the choice out."""
    before, after = prepared(build, form=form), prepared(build, form=form)
    make()(after)
    x = {"x": rng.standard_normal((2, 3, 64)).astype(np.float32)}
    want = run(before, x)["y"]
    other = ir.to_proto(after)
    with_whole_head(other.graph)
    assert not any(node.op_type in ("TopK", "ScatterElements") for node in other.graph.node)
    assert np.array_equal(run(ir.from_proto(other), x)["y"], want)
    choose_all(after)
    np.testing.assert_allclose(run(after, x)["y"], want, atol=1e-5 * abs(want).max())


def test_the_choice_follows_rounded_activations(build):
    """Accuracy level 4 is the head's own, so the choice has it too."""
    model = prepared(build, level=4)
    make()(model)
    levels = [n.attributes["accuracy_level"].as_int() for n in model.graph if "N" in n.attributes]
    assert levels == [4, 4]
    float_activations(model)
    assert not any("accuracy_level" in node.attributes for node in model.graph)
