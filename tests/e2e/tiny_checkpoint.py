"""Checkpoints of random weights in unlike configurations, written as the hub has them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export_min import families
from export_min.checkpoint import DEMO, TOKENIZER_FILES

VOCAB = 640
"""More than the tokenizer has; the last id is never the likeliest, so it can stand for the end."""
NEVER = VOCAB - 1


@dataclass(frozen=True)
class Tiny:
    """One configuration: what it has of its own, how it is stored."""

    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool = True
    dtype: torch.dtype = torch.float32
    shards: int = 1
    rope: str = "rope_scaling"
    """Where config.json keeps `rope_theta`: "root", "rope_parameters" or "rope_scaling"."""
    family: str = "qwen3_vl"
    flat: bool = False
    """Whether config.json and the weights are as Qwen2-VL's were first published: no text_config,
    the tower beside the decoder."""


TINY = {
    # untied head; wide heads, one for keys and values; DeepStack at the last block
    "untied": Tiny(
        text={
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "intermediate_size": 192,
            "mrope_section": [12, 10, 10],
        },
        vision={
            "hidden_size": 96,
            "num_heads": 3,
            "depth": 3,
            "intermediate_size": 160,
            "deepstack_visual_indexes": [0, 2],
            "num_position_embeddings": 100,
        },
        tied=False,
        rope="root",
    ),
    # bfloat16 in shards; narrow heads; one DeepStack layer in the middle; a wide merger
    "sharded": Tiny(
        text={
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "intermediate_size": 256,
            "mrope_section": [3, 3, 2],
        },
        vision={
            "hidden_size": 160,
            "num_heads": 5,
            "depth": 2,
            "intermediate_size": 96,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 36,
        },
        dtype=torch.bfloat16,
        shards=3,
        rope="rope_parameters",
    ),
    # float16; no grouping of heads; DeepStack after neither the first nor evenly spaced blocks
    "half": Tiny(
        text={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 160,
            "mrope_section": [8, 4, 4],
        },
        vision={
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 6,
            "intermediate_size": 128,
            "deepstack_visual_indexes": [1, 2, 5],
            "num_position_embeddings": 16,
        },
        dtype=torch.float16,
        shards=2,
    ),
    # experts as published, [E, in, out], bfloat16 in shards; every layer has some
    "experts": Tiny(
        text={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "mrope_section": [6, 6, 4],
        },
        vision={
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 2,
            "intermediate_size": 96,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 36,
        },
        tied=False,
        dtype=torch.bfloat16,
        shards=2,
        family="qwen3_vl_moe",
    ),
    # dense layers first, last and in between; one expert in two is active
    "some experts": Tiny(
        text={
            "hidden_size": 96,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "intermediate_size": 128,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "mlp_only_layers": [0, 2, 4],
            "mrope_section": [8, 4, 4],
        },
        vision={
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 2,
            "intermediate_size": 96,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 16,
        },
        family="qwen3_vl_moe",
    ),
    # windows of three tokens and full attention at the first, a middle and the last block; as first
    # published: bfloat16 in shards, flat config.json
    "qwen2_5": Tiny(
        text={
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 160,
            "mrope_section": [2, 3, 3],
        },
        vision={
            "hidden_size": 64,
            "num_heads": 4,
            "depth": 6,
            "intermediate_size": 100,
            "window_size": 90,
            "fullatt_block_indexes": [0, 3, 5],
        },
        tied=False,
        dtype=torch.bfloat16,
        shards=2,
        family="qwen2_5_vl",
        flat=True,
    ),
    # windows of two tokens in all blocks but one; tied head; the last decoder layers see 8 tokens
    "qwen2_5 windows": Tiny(
        text={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "mrope_section": [6, 5, 5],
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
        vision={
            "hidden_size": 96,
            "num_heads": 3,
            "depth": 3,
            "intermediate_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        family="qwen2_5_vl",
    ),
    # a tower narrower than what leaves it; as first published, float16
    "qwen2": Tiny(
        text={
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 192,
            "mrope_section": [4, 6, 6],
        },
        vision={"embed_dim": 80, "num_heads": 5, "depth": 3, "mlp_ratio": 2},
        dtype=torch.float16,
        family="qwen2_vl",
        flat=True,
    ),
}


def write_checkpoint(tiny: Tiny, out: Path, seed: int = 0) -> Path:
    """Write a checkpoint with the demo's tokenizer; returns its directory."""
    out.mkdir(parents=True)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (DEMO / name).is_file():
            shutil.copyfile(DEMO / name, out / name)
    config = configuration(tiny)
    dump(config, out / "config.json")
    dump(preprocessor(tiny), out / "preprocessor_config.json")
    torch.manual_seed(seed)
    family = families.load(tiny.family).model
    model = family(family.config_class.from_dict(config))
    state = {name: published(name, weight(value)) for name, value in model.state_dict().items()}
    head = "lm_head.weight"
    if tiny.tied:
        del state[head]
        head = "model.language_model.embed_tokens.weight"
    state[head][NEVER] = 0
    names = {name: older(name) if tiny.flat else name for name in state}
    state = {names[name]: value.to(tiny.dtype) for name, value in state.items()}
    write_weights(state, out, tiny.shards)
    return out


def configuration(tiny: Tiny) -> dict[str, Any]:
    """config.json: the demo's with this configuration's own values."""
    config: dict[str, Any] = json.loads((DEMO / "config.json").read_text())
    if tiny.family in ("qwen2_vl", "qwen2_5_vl"):
        return older_configuration(tiny, config)
    config["model_type"] = tiny.family
    config["architectures"] = [families.FAMILIES[tiny.family]]
    text = dict(tiny.text)
    rope = {"mrope_interleaved": True, "rope_type": "default"}
    rope["mrope_section"] = text.pop("mrope_section")
    text |= {"vocab_size": VOCAB, "tie_word_embeddings": tiny.tied}
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        config["text_config"].pop(key, None)
    if tiny.rope == "root":
        text |= {"rope_scaling": rope, "rope_theta": 5000}
    else:
        text[tiny.rope] = rope | {"rope_theta": 5000}
    config["text_config"] |= text
    config["vision_config"] |= tiny.vision | {"out_hidden_size": text["hidden_size"]}
    config["tie_word_embeddings"] = tiny.tied
    return config


def older_configuration(tiny: Tiny, demo: dict[str, Any]) -> dict[str, Any]:
    """config.json of Qwen2-VL and Qwen2.5-VL, with the demo's tokens."""
    text = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "vocab_size": VOCAB,
        "rope_theta": 5000.0,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 2,
        "bos_token_id": demo["text_config"]["bos_token_id"],
        "eos_token_id": demo["text_config"]["eos_token_id"],
        "tie_word_embeddings": tiny.tied,
    } | tiny.text
    text["rope_scaling"] = {"type": "mrope", "mrope_section": text.pop("mrope_section")}
    vision = {
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    } | tiny.vision
    vision["hidden_size" if "embed_dim" in vision else "out_hidden_size"] = text["hidden_size"]
    return {
        "model_type": tiny.family,
        "architectures": [families.FAMILIES[tiny.family]],
        **{name: value for name, value in demo.items() if name.endswith("_token_id")},
        **(text if tiny.flat else {"text_config": text}),
        "vision_config": vision,
    }


def preprocessor(tiny: Tiny) -> dict[str, Any]:
    """preprocessor_config.json: the demo's, or the older form with its own numbers."""
    config: dict[str, Any] = json.loads((DEMO / "preprocessor_config.json").read_text())
    if tiny.family not in ("qwen2_vl", "qwen2_5_vl"):
        return config | {"size": {"shortest_edge": 4096, "longest_edge": 1048576}}
    del config["size"]
    return config | {
        "min_pixels": 28 * 28,
        "max_pixels": 1048576,
        "patch_size": 14,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def older(name: str) -> str:
    """The name of a weight before the tower and the decoder had one parent."""
    return (
        name.removeprefix("model.")
        if name.startswith("model.visual.")
        else name.replace("model.language_model.", "model.")
    )


def published(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight as checkpoints hold it: experts `[E, in, out]`, which transformers turns."""
    return weight.transpose(1, 2).contiguous() if ".experts." in name else weight


def weight(like: torch.Tensor) -> torch.Tensor:
    """Random numbers that keep activations of the order of one."""
    if like.ndim > 1:
        read = like[0, 0] if like.ndim == 3 else like[0]  # a row of a stack, of a matrix, a filter
        return torch.randn(like.shape) * read.numel() ** -0.5
    return torch.randn(like.shape) * 0.1 + like.mean().round()  # norms around 1, biases around 0


def write_weights(state: dict[str, torch.Tensor], out: Path, shards: int) -> None:
    """Write safetensors files, with an index where there are several."""
    if shards == 1:
        save_file(state, out / "model.safetensors")
        return
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    place = {name: names[i % shards] for i, name in enumerate(state)}
    for file in names:
        save_file({name: state[name] for name in state if place[name] == file}, out / file)
    total = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    dump(index, out / "model.safetensors.index.json")


def dump(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2))
