"""The unrolled graph is the graph of a full trace, layer order, names and numbers included."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig, Qwen3VLMoeConfig

from export_min import families, trace, unroll
from surgery.rewrite.scope import scope

CASES = {
    "levels first, between and last": {"depth": 5, "indexes": [0, 2, 4], "layers": 5},
    "plain first": {"depth": 4, "indexes": [1, 2], "layers": 3},
    "fewer layers than levels": {"depth": 2, "indexes": [0, 1], "layers": 1},
}


def config(depth: int, indexes: list[int], layers: int) -> Qwen3VLConfig:
    result = Qwen3VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": depth,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": indexes,
            "patch_size": 4,
        },
        image_token_id=60,
        video_token_id=61,
    )
    for part in (result, result.text_config, result.vision_config):
        part.dtype = torch.float32
    return result


def windowed(full: list[int]) -> Qwen2_5_VLConfig:
    """Blocks with windows but for some, decoder layers of which the last two see few tokens."""
    result = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 64,
            "use_sliding_window": True,
            "sliding_window": 2,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 8,
            "fullatt_block_indexes": full,
        },
        image_token_id=60,
        video_token_id=61,
    )
    for part in (result, result.text_config, result.vision_config):
        part.dtype = torch.float32
    return result


def traced(config: Any, name: str, short: bool) -> ir.Model:
    family = families.load(config.model_type)
    source = family.shorten(config) if short else copy.deepcopy(config)
    model = trace.meta_model(family, source)
    (spec,) = (spec for spec in family.specs(source) if spec.name == name)
    graph = trace.trace(spec, model)
    if short:
        unroll.unroll(graph, family.stacks(config)[name])
    fill(graph)
    return graph


def fill(model: ir.Model) -> None:
    """Give every weight numbers that depend on its name alone."""
    for name, value in model.graph.initializers.items():
        if "inv_freq" in name:
            continue
        seed = sum(ord(c) * 31**i for i, c in enumerate(name)) % (1 << 32)
        shape = value.shape.numpy()
        array = np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)
        value.const_value = ir.tensor(array, name=name)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, feeds)


def example(model: ir.Model) -> dict[str, np.ndarray]:
    sizes = {"batch": 1, "sequence": 4, "past": 3, "total": 7, "tokens": 4, "images": 2}
    rng = np.random.default_rng(0)
    grids = np.array([[1, 2, 4], [2, 4, 2]])
    sizes["patches"] = int(grids.prod(-1).sum())
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape]
        if value.name == "image_grid_thw":
            feeds[value.name] = grids
        elif value.dtype == ir.DataType.FLOAT:
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
        else:
            feeds[value.name] = np.ones(shape, value.dtype.numpy())
    return feeds


def mixture() -> Qwen3VLMoeConfig:
    """One DeepStack level, then layers without and with experts in turn.

    The first has experts: a trace measures the tokens there, for all.
    """
    plain = config(depth=2, indexes=[1], layers=5)
    text = plain.text_config.to_dict() | {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
    result = Qwen3VLMoeConfig(
        text_config=text | {"num_experts": 4, "mlp_only_layers": [1, 3]},
        vision_config=plain.vision_config.to_dict(),
        image_token_id=60,
        video_token_id=61,
    )
    for part in (result, result.text_config, result.vision_config):
        part.dtype = torch.float32
    return result


@pytest.mark.parametrize("name", ["vision", "decoder"])
@pytest.mark.parametrize(
    "case",
    # the longest stack takes two minutes to trace; the end to end tests run its kind anyway
    [pytest.param(c, marks=pytest.mark.nightly) if "between" in c else c for c in CASES],
)
def test_unrolled_equals_full_trace(case: str, name: str) -> None:
    check(config(**CASES[case]), name)


@pytest.mark.parametrize("name", ["vision", "decoder"])
def test_several_layers_of_each_kind(name: str) -> None:
    check(windowed(full=[1, 3]), name)


def test_layers_with_and_without_experts() -> None:
    check(mixture(), "decoder")


def check(cfg: Any, name: str) -> None:
    full, short = traced(cfg, name, short=False), traced(cfg, name, short=True)

    assert [v.name for v in short.graph.inputs] == [v.name for v in full.graph.inputs]
    assert [v.name for v in short.graph.outputs] == [v.name for v in full.graph.outputs]
    weights = {n for n in full.graph.initializers if n.startswith(("model.", "lm_head."))}
    assert weights == {n for n in short.graph.initializers if n.startswith(("model.", "lm_head."))}
    assert histogram(short) == histogram(full)
    assert scopes(short) == scopes(full)

    feeds = example(full)
    for a, b in zip(run(full, feeds), run(short, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def histogram(model: ir.Model) -> Counter[str]:
    """Ops, constants aside: copies of a layer share them, a trace makes some anew."""
    return Counter(node.op_type for node in model.graph if node.op_type != "Constant")


def scopes(model: ir.Model) -> Counter[tuple[str, str]]:
    # A constant stands in the first layer that needs it, which differs; nothing else does.
    nodes = (node for node in model.graph if node.op_type != "Constant")
    return Counter((scope(node), node.op_type) for node in nodes)
