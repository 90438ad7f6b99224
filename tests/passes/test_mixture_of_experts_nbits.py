"""Experts with quantized weights."""

import numpy as np
import onnx_ir as ir
import pytest

import quant
from surgery.passes.quantized.mixture_of_experts_nbits import MixtureOfExpertsNBits

E, H, INNER = 5, 64, 32

BEFORE = """
g (float[T,64] x, float[T,5] logits, float[5,64,64] both_weight, float[5,64,32] down_weight)
  => (float[T,64] y) {
  y = com.microsoft.MoE<k = 2, activation_type = "swiglu", swiglu_fusion = 1,
      activation_alpha = 1.0, activation_beta = 0.0, normalize_routing_weights = 1>(
      x, logits, both_weight, , down_weight)
}
"""
FORMATS = [quant.BlockFormat(bits, block, symmetric) for bits, block, symmetric in (
    (4, 32, True), (4, 32, False), (4, 16, True), (4, 16, False),
)]  # fmt: skip
MISSES = [
    ("float[5,64,64] both_weight", "float[5,64,64] both", ""),
    ("down_weight", "kept_weight", "a weight that the policy quantizes"),
    ("float[5,64,32] down_weight", "float[5,64,40] down_weight", "rows of whole blocks of 32"),
    ("down_weight", "wide_weight", "one format for both"),
    ("both_weight, , down_weight", "both_weight, , down_weight, , third_weight", "no third weight"),
]


def policy(name):
    if name.startswith("kept"):
        return None
    return quant.BlockFormat(8) if name.startswith("wide") else FORMATS[0]


def make():
    return MixtureOfExpertsNBits(policy)


def test_golden(build, golden):
    golden(make(), build(BEFORE))


@pytest.mark.parametrize(("old", "new", "reason"), MISSES)
def test_near_miss(build, untouched, old, new, reason):
    assert old in BEFORE
    text = BEFORE.replace(old, new)
    if new.endswith("] both"):
        text = text.replace("both_weight", "both")
    if "third" in new:
        text = text.replace(
            "float[5,64,32] down", "float[5,32,64] third_weight, float[5,64,32] down"
        )
    untouched(make(), build(text), reason)


def tokens(rng):
    for count in (1, 2, 33):
        x, logits = (rng.standard_normal((count, n)).astype(np.float32) for n in (H, E))
        yield {"x": x, "logits": logits}


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_numbers(build, run, rng, form):
    """The op computes with exactly what unpacking says, on unseen numbers of tokens."""
    model, reference = build(BEFORE), build(BEFORE)
    for name, value in reference.graph.initializers.items():
        stored = value.const_value.numpy()
        rows = quant.dequantize(quant.quantize(stored.reshape(-1, stored.shape[-1]), form))
        value.const_value = ir.tensor(rows.reshape(stored.shape), name=name)
    work = MixtureOfExpertsNBits(lambda name: form)
    work(model)
    assert work.count == 1
    for feeds in tokens(rng):
        want, got = run(reference, feeds)["y"], run(model, feeds)["y"]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_bytes_are_those_of_the_rows(build):
    model = build(BEFORE)
    stored = model.graph.initializers["down_weight"].const_value.numpy()
    make()(model)
    want = quant.quantize(stored.reshape(-1, INNER), FORMATS[0])
    parts = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    assert parts["down_weight.packed"].shape == (E, H, INNER // 2)
    assert parts["down_weight.packed"].tobytes() == want.packed.tobytes()
    assert parts["down_weight.scales"].tobytes() == want.scales.tobytes()


def test_attributes(build):
    model = build(BEFORE)
    MixtureOfExpertsNBits(policy, accuracy_level=4, scales=ir.DataType.FLOAT16)(model)
    (node,) = model.graph
    found = {name: attribute.value for name, attribute in node.attributes.items()}
    assert found == {
        "k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0,
        "activation_beta": 0.0, "normalize_routing_weights": 1, "expert_weight_bits": 4,
        "block_size": 32, "accuracy_level": 4, "weights_prepacked": 0,
    }  # fmt: skip
    assert model.graph.initializers["both_weight.scales"].dtype == ir.DataType.FLOAT16
