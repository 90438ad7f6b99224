"""The graphs in plain onnxruntime compute what PyTorch's modules compute, raw and finished."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import DynamicCache

from surgery.answer.trusted import PARTS
from surgery.verify.opened import Opened

GRIDS = (
    [[1, 2, 2]],
    [[1, 4, 6], [2, 8, 4]],
    [[3, 4, 4], [1, 10, 6], [1, 2, 12]],
    [[2, 8, 8], [1, 8, 8], [2, 8, 8]],
    [[1, 24, 24]],
)
"""Pictures and videos in one call, frames first."""

STEPS = ((1, 5, 0), (1, 1, 7), (1, 4, 3), (3, 5, 0), (3, 1, 9))
"""Batch, new tokens, cached tokens."""

RAW = 1e-5
FINISHED = 2e-5
"""Largest difference, with logits and features of the order of one to ten."""


def session(path, weights=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if weights is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(weights))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(graph, feed):
    outputs = graph.run(None, {name: np.ascontiguousarray(value) for name, value in feed.items()})
    return dict(zip((output.name for output in graph.get_outputs()), outputs))


@pytest.fixture(scope="session")
def finished(case):
    return {part: session(Opened(case.fp32).path(part)) for part in PARTS}


@pytest.fixture(scope="session")
def raw(case):
    weights = json.loads((case.raw / "manifest.json").read_text())["weights"]
    parts = ("vision", "embedding", "decoder")
    return {part: session(case.raw / f"{part}.onnx", weights) for part in parts}


def near(found, wanted, tolerance):
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted
    assert found.shape == wanted.shape
    scale = max(1.0, float(abs(wanted).max()))
    assert abs(found - wanted).max() <= tolerance * scale


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_vision(case, raw, finished, grids):
    torch.manual_seed(0)
    grid = torch.tensor(grids)
    tower = case.reference.config.vision_config
    columns = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    pixels = torch.randn(int(grid.prod(-1).sum()), columns)
    with torch.no_grad():
        wanted = case.reference.model.model.visual(pixels, grid_thw=grid, return_dict=True)
    feed = {"pixel_values": pixels.numpy(), "image_grid_thw": grid.numpy()}
    found = run(raw["vision"], feed)
    near(found["image_features"], wanted.pooler_output, RAW)
    deep = wanted.deepstack_features if case.levels else []
    if deep:
        near(found["deepstack_features"], torch.stack(deep), RAW)
    levels = torch.cat([wanted.pooler_output, *deep], -1)
    near(run(finished["vision"], feed)["image_features"], levels, FINISHED)


def test_embedding(case, raw, finished):
    torch.manual_seed(0)
    config, levels = case.reference.config, case.levels
    width, image, video = (
        config.text_config.hidden_size,
        config.image_token_id,
        config.video_token_id,
    )
    ids = torch.tensor([[1, image, image, 2], [3, 4, video, 5], [6, 7, 8, 9]])
    visual = (ids == image) | (ids == video)
    features = torch.randn(3, (1 + levels) * width)
    embeds = case.reference.model.model.language_model.embed_tokens(ids).detach().clone()
    embeds[visual] = features[:, :width]
    layers = torch.zeros(3, 4, levels * width)
    layers[visual] = features[:, width:]

    feed = {"input_ids": ids.numpy(), "image_features": features[:, :width].numpy()}
    found = run(raw["embedding"], feed)
    near(found["inputs_embeds"], embeds, 0)
    assert ("visual_pos_masks" in found) == (levels > 0)
    if levels:
        assert np.array_equal(found["visual_pos_masks"], visual.numpy())
    found = run(finished["embedding"], feed | {"image_features": features.numpy()})
    near(found["inputs_embeds"], embeds, 0)
    assert ("per_layer_inputs" in found) == (levels > 0)
    if levels:
        near(found["per_layer_inputs"], layers, 0)


def test_embedding_of_a_placeholder_without_a_picture(case, finished):
    """A sampled `<|image_pad|>` while decoding: an ordinary token to the package."""
    image = case.reference.config.image_token_id
    features = np.zeros((0, (1 + case.levels) * case.reference.config.text_config.hidden_size))
    feed = {"input_ids": np.array([[image]]), "image_features": features.astype(np.float32)}
    found = run(finished["embedding"], feed)
    embeds = case.reference.model.model.language_model.embed_tokens(torch.tensor([[image]]))
    near(found["inputs_embeds"], embeds, 0)
    assert "per_layer_inputs" not in found or not found["per_layer_inputs"].any()


@pytest.mark.parametrize(("batch", "new", "cached"), STEPS)
def test_decoder(case, raw, finished, batch, new, cached):
    if batch == 1 or cached == 0 or new == 1:  # else GroupQueryAttention refuses
        check_decoder(case, finished["decoder"], batch, new, cached, packed=True)
    check_decoder(case, raw["decoder"], batch, new, cached, packed=False)


def test_raw_decoder_continues_a_batch(case, raw):
    check_decoder(case, raw["decoder"], 3, 2, 9, packed=False)


def check_decoder(case, graph, batch, new, cached, packed):
    """Compare logits and cache; `packed` is the finished graph's transport of DeepStack."""
    torch.manual_seed(0)
    text, levels = case.reference.config.text_config, case.levels
    layers, width = text.num_hidden_layers, text.hidden_size
    visual = torch.zeros(batch, new, dtype=torch.bool)
    visual[:, : new // 2] = True
    features = torch.randn(levels, int(visual.sum()), width)
    embeds = torch.randn(batch, new, width)
    positions = torch.randint(0, 40, (3, batch, new))
    mask = torch.ones(batch, cached + new, dtype=torch.int64)
    width_of_a_head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    past = [
        torch.randn(batch, text.num_key_value_heads, cached, width_of_a_head)
        for _ in range(2 * layers)
    ]
    feed = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
    deep = {}
    if levels:
        deep = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(features)}
    if packed and levels:
        dense = torch.zeros(batch, new, levels * width)
        dense[visual] = features.permute(1, 0, 2).reshape(-1, levels * width)
        feed["per_layer_inputs"] = dense
    elif levels:
        feed |= {"visual_pos_masks": visual, "deepstack_features": features}
    for i in range(layers):
        feed[f"past_key_values.{i}.key"] = past[2 * i]
        feed[f"past_key_values.{i}.value"] = past[2 * i + 1]
    found = run(graph, {name: value.numpy().copy() for name, value in feed.items()})
    cache = DynamicCache(list(zip(past[::2], past[1::2])))
    with torch.no_grad():
        out = case.reference.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            **deep,
            past_key_values=cache,
            use_cache=True,
        )
        logits = case.reference.model.lm_head(out.last_hidden_state)
    tolerance = FINISHED if packed else RAW
    near(found["logits"], logits[:, -1:] if packed else logits, tolerance)
    for i, layer in enumerate(out.past_key_values.layers):
        near(found[f"present.{i}.key"], layer.keys, tolerance)
        near(found[f"present.{i}.value"], layer.values, tolerance)
