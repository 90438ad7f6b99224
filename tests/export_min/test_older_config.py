"""config.json of Qwen2-VL and Qwen2.5-VL as published: flat or nested, and what it may not say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from export_min import families
from export_min.checkpoint import Checkpoint, CheckpointError
from export_min.trace import resolved_config
from surgery.engine.facts import Facts

TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128000,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 70,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
WINDOWED = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
PLAIN = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_chans": 3,
    "hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
TOWERS = {"qwen2_5_vl": WINDOWED, "qwen2_vl": PLAIN}


def published(kind: str, flat: bool = True) -> dict[str, Any]:
    text = copy.deepcopy(TEXT)
    return {
        "model_type": kind,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_config": copy.deepcopy(TOWERS[kind]),
        **(text if flat else {"text_config": text}),
    }


def load(config: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(folder, "published")
    return resolved_config(checkpoint, families.load(checkpoint.model_type))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", TOWERS)
def test_both_forms(tmp_path: Path, kind: str, flat: bool) -> None:
    config = published(kind, flat)
    found = load(config, tmp_path)
    text = found.text_config
    assert (text.num_hidden_layers, text.num_key_value_heads, text.vocab_size) == (36, 2, 151936)
    assert text.rope_parameters["rope_theta"] == 1e6
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert found.tie_word_embeddings and set(text.layer_types) == {"full_attention"}
    resolved = json.loads(found.to_json_string(use_diff=False))
    facts = Facts(tmp_path, {"resolved": resolved, "tied": found.tie_word_embeddings})
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (36, 16, 2, 128)
    assert (facts.depth, facts.levels, facts.tied) == (32, 0, True)


@pytest.mark.parametrize("kind", TOWERS)
def test_few_layers_are_traced(tmp_path: Path, kind: str) -> None:
    family, config = families.load(kind), load(published(kind), tmp_path)
    stacks = family.stacks(config)
    kinds = 2 if kind == "qwen2_5_vl" else 1
    assert (stacks["vision"].traced, stacks["decoder"].traced) == (kinds, 1)
    short = family.shorten(config)
    assert (short.vision_config.depth, short.text_config.num_hidden_layers) == (kinds, 1)
    if kind == "qwen2_5_vl":
        full = [i for i, like in enumerate(stacks["vision"].order) if like == 1]
        assert full == [7, 15, 23, 31] and short.vision_config.fullatt_block_indexes == [1]


@pytest.mark.parametrize("kind", TOWERS)
def test_names_of_weights(kind: str) -> None:
    rename = families.load(kind).rename
    assert rename("visual.blocks.3.norm1.weight") == "model.visual.blocks.3.norm1.weight"
    assert rename("model.layers.2.mlp.up_proj.weight") == (
        "model.language_model.layers.2.mlp.up_proj.weight"
    )
    for name in (
        "lm_head.weight",
        "model.visual.patch_embed.proj.weight",
        "model.language_model.norm.weight",
    ):
        assert rename(name) == name


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("qwen2_5_vl", "vision_config", {"window_size": 20}, "window_size 20 is less than"),
        ("qwen2_5_vl", "vision_config", {"out_hidden_size": 64}, "out_hidden_size is 64"),
        ("qwen2_5_vl", "vision_config", {"num_heads": 3}, "hidden_size 1280 is not a multiple"),
        ("qwen2_vl", "vision_config", {"hidden_size": 1536}, "vision_config.hidden_size is 1536"),
        ("qwen2_vl", "vision_config", {"num_heads": 3}, "embed_dim 1280 is not a multiple"),
        ("qwen2_vl", None, {"num_attention_heads": 24}, "hidden_size 2048 is not a multiple of"),
        ("qwen2_vl", None, {"layer_types": ["full_attention"]}, "layer_types"),
        (
            "qwen2_5_vl",
            None,
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}},
            "mrope_section is [16, 24], must be three integers that add up to half",
        ),
        (
            "qwen2_5_vl",
            None,
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type is 'dynamic'",
        ),
        ("qwen2_vl", None, {"vision_config": None}, "no 'vision_config' object"),
    ],
)
def test_refused(
    tmp_path: Path, kind: str, part: str | None, change: dict[str, Any], message: str
) -> None:
    config = published(kind)
    (config if part is None else config[part]).update(change)
    with pytest.raises(CheckpointError) as error:
        load(config, tmp_path)
    text = str(error.value)
    assert message in text and "\n" not in text
