"""Checkpoints of random weights in unlike configurations, written as the hub has them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

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
}


def write_checkpoint(tiny: Tiny, out: Path, seed: int = 0) -> Path:
    """Write a checkpoint with the demo's tokenizer; returns its directory."""
    out.mkdir(parents=True)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (DEMO / name).is_file():
            shutil.copyfile(DEMO / name, out / name)
    config = configuration(tiny)
    dump(config, out / "config.json")
    preprocessor = json.loads((DEMO / "preprocessor_config.json").read_text())
    preprocessor["size"] = {"shortest_edge": 4096, "longest_edge": 1048576}
    dump(preprocessor, out / "preprocessor_config.json")
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
    state = {name: weight(value) for name, value in model.state_dict().items()}
    head = "lm_head.weight"
    if tiny.tied:
        del state[head]
        head = "model.language_model.embed_tokens.weight"
    state[head][NEVER] = 0
    write_weights({name: value.to(tiny.dtype) for name, value in state.items()}, out, tiny.shards)
    return out


def configuration(tiny: Tiny) -> dict[str, Any]:
    """config.json: the demo's with this configuration's own values."""
    config: dict[str, Any] = json.loads((DEMO / "config.json").read_text())
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


def weight(like: torch.Tensor) -> torch.Tensor:
    """Random numbers that keep activations of the order of one."""
    if like.ndim > 1:
        return torch.randn(like.shape) * like[0].numel() ** -0.5
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
