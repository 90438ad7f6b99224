"""Experts are calibrated on the tokens that their router sends them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import quant
from surgery.calibrate.experts import gated, quantized, scores
from surgery.match.mixtures import Mixture, mixture_of
from surgery.rewrite.weights import Inline, set_source

E, H, INNER, ACTIVE = 6, 64, 96, 2
FORM = quant.BlockFormat(4, 32, symmetric=False)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    """A node with random experts, gate and up rows alternating."""
    rng = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ("t", H))
    logits = ir.val("logits", ir.DataType.FLOAT, ("t", E))
    shapes = {"up": (E, 2 * INNER, H), "down": (E, H, INNER)}
    weights = [ir.Value(name=name) for name in shapes]
    for weight, shape in zip(weights, shapes.values(), strict=True):
        array = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        set_source(weight, Inline(ir.tensor(array)))
    attributes = {
        "k": ACTIVE, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0,
        "activation_beta": 0.0, "normalize_routing_weights": 1,
    }  # fmt: skip
    node = ir.node(
        "MoE", [x, logits, weights[0], None, weights[1]], attributes, domain="com.microsoft"
    )
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x, logits], node.outputs, nodes=[node], initializers=weights,
        opset_imports={"": 21, "com.microsoft": 1}, name="experts",
    )  # fmt: skip
    found = mixture_of(graph[0])
    assert found is not None and found.names == ("up", "down") and found.active == ACTIVE
    return found


def run(mixture: Mixture, x, logits, upward=None, downward=None):
    """The node in onnxruntime, perhaps with other weights."""
    graph = mixture.node.graph
    assert graph is not None
    model = ir.from_proto(ir.to_proto(ir.Model(graph, ir_version=10)))
    for name, weight in (("up", upward), ("down", downward)):
        if weight is not None:
            model.graph.initializers[name].const_value = ir.tensor(weight, name=name)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": x, "logits": logits})[0]


def tokens(count: int, seed: int):
    """Correlated inputs, and a router that they decide; neighbours are alike."""
    rng = np.random.default_rng(1)
    mixing = np.eye(H) + 0.8 * rng.standard_normal((H, H)) / np.sqrt(H)
    router = rng.standard_normal((H, E)) / np.sqrt(H)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, H)) @ mixing).astype(np.float32)
    return x, (2 * x @ router).astype(np.float32)


def unpacked(stack) -> np.ndarray:
    return quant.dequantize(stack.blocks).reshape(stack.shape)


def test_scores_and_gates_are_those_of_the_op(mixture: Mixture) -> None:
    x, logits = tokens(40, 3)
    given = scores(logits, ACTIVE)
    assert ((given > 0).sum(-1) == ACTIVE).all()
    np.testing.assert_allclose(given.sum(-1), 1, rtol=1e-6)
    total = np.zeros_like(x)
    for e in range(E):
        (upward,), (downward,) = (s.read(e, e + 1) for s in (mixture.upward, mixture.downward))
        total += given[:, e : e + 1] * (gated(x @ upward[0].T) @ downward[0].T)
    np.testing.assert_allclose(run(mixture, x, logits), total, atol=2e-5)


def test_unseen_tokens_lose_less_than_by_rounding(mixture: Mixture) -> None:
    """Through the op, with the weights that the blocks stand for."""
    upward, downward = quantized(mixture, *tokens(6000, 4), FORM)
    assert upward.own == downward.own == E
    assert 0 < upward.error < upward.norm and 0 < downward.error < downward.norm
    x, logits = tokens(1000, 5)
    exact = run(mixture, x, logits)
    ours = run(mixture, x, logits, unpacked(upward), unpacked(downward))
    weights = [source.read(0, E)[0] for source in (mixture.upward, mixture.downward)]
    rounded = [quant.quantize_parallel(w.reshape(-1, w.shape[-1]), FORM) for w in weights]
    restored = [quant.dequantize(b).reshape(w.shape) for b, w in zip(rounded, weights, strict=True)]
    plain = run(mixture, x, logits, *restored)
    assert np.square(ours - exact).sum() < 0.85 * np.square(plain - exact).sum()


def test_an_expert_without_tokens_is_searched(mixture: Mixture) -> None:
    """Nobody chooses the last one; it is no worse than rounding under the mean squares."""
    x, logits = tokens(500, 6)
    logits[:, -1] = -100
    upward, downward = quantized(mixture, x, logits, FORM)
    assert upward.own == downward.own == E - 1
    weight = mixture.upward.read(E - 1, E)[0][0]
    squares = np.square(x[np.linspace(0, 499, 256).astype(int)]).mean(0)
    wanted = quant.search(weight, FORM, squares)
    last = slice((E - 1) * 2 * INNER, None)
    np.testing.assert_array_equal(upward.blocks.packed[last], wanted.packed)
    np.testing.assert_allclose(upward.blocks.scales[last], wanted.scales, rtol=1e-5)


def test_one_token_is_no_reason_to_move_codes(mixture: Mixture) -> None:
    x, logits = tokens(200, 7)
    logits[:, -1] = -100
    logits[17, -1] = 100
    upward, _ = quantized(mixture, x, logits, FORM)
    assert upward.own == E - 1
