"""Experts without a loop compute what transformers computes, however the weights lie."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from transformers import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from export_min import experts, families, trace

EXPERTS, WIDTH, INNER, ACTIVE = 6, 20, 12, 3

STORED = """
<ir_version: 10, opset_import: ["": 23]>
g (float[T,5] x, float[2,3,5] w) => (float[2,T,3] y) {
  turned = Transpose<perm = [0, 2, 1]>(w)
  y = MatMul(x, turned)
}
"""


@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_every_expert_is_the_loop_over_the_chosen(tokens: int) -> None:
    torch.manual_seed(tokens)
    config = Qwen3VLMoeTextConfig(
        num_experts=EXPERTS, hidden_size=WIDTH, moe_intermediate_size=INNER, num_attention_heads=2
    )
    config._experts_implementation = "eager"
    module = Qwen3VLMoeTextExperts(config)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x = torch.randn(tokens, WIDTH)
    scores, index = torch.softmax(torch.randn(tokens, EXPERTS), -1).topk(ACTIVE)
    with torch.no_grad():
        wanted = module(x, index, scores)
        found = experts.every_expert(module, x, index, scores)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_weight_stored_with_swapped_axes_is_read_without_its_transpose() -> None:
    model = ir.from_onnx_text(STORED)
    (weight,) = (value for value in model.graph.inputs if value.name == "w")
    trace.turn(model.graph, weight, (2, 5, 3))
    assert list(weight.shape or ()) == [2, 5, 3]
    (product,) = model.graph
    assert product.op_type == "MatMul" and product.inputs[1] is weight


def test_another_reader_of_a_weight_stored_with_swapped_axes_is_refused() -> None:
    model = ir.from_onnx_text(STORED.replace("Transpose<perm = [0, 2, 1]>", "Neg"))
    (weight,) = (value for value in model.graph.inputs if value.name == "w")
    with pytest.raises(AssertionError, match="Neg reads w"):
        trace.turn(model.graph, weight, (2, 5, 3))


def test_which_shapes_fit() -> None:
    """As in transformers: the same shape is never turned, a square one included."""
    family = families.load("qwen3_vl_moe")
    name = "model.language_model.layers.3.mlp.experts.gate_up_proj"
    assert family.fits(name, (4, 8, 6), (4, 8, 6))
    assert family.fits(name, (4, 6, 8), (4, 8, 6))
    assert not family.fits(name, (8, 4, 6), (4, 8, 6))
    assert not family.fits(name.replace("gate_up_proj", "gate.weight"), (6, 8), (8, 6))
    assert not families.load("qwen3_vl").fits(name, (4, 6, 8), (4, 8, 6))
