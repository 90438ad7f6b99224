"""Llama 3.2 Vision: a decoder that looks at the picture across, and a tower of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from text import BLOCK, LAYERS, Text
from torch import nn
from transformers import DynamicCache, MllamaForCausalLM
from vision import Tower

from export_min.attention import GROUPED

CROSS = 1
"""The layer that attends to the picture."""
TOKENS = 6
"""Tokens of the picture."""
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Crossed(Text):
    """A decoder with a layer of cross-attention among its others, its keys and values given."""

    refused = ("group_query_attention",)

    def build(self) -> nn.Module:
        """The random model."""
        return Across(super().build().model)

    def inputs(self, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
        """Random inputs; the first tokens of a prompt come before the picture."""
        b, s, p = shape
        rng = np.random.default_rng(seed + 100)
        seen = np.arange(p, p + s) >= 2
        hidden = np.where(seen[None, None, :, None], 0.0, LOWEST).astype(np.float32)
        hidden = np.broadcast_to(hidden, (b, 1, s, TOKENS)).copy()
        hidden[..., -1] = LOWEST  # padding of the picture
        rows = np.broadcast_to(seen[None, None, :, None], (b, 1, s, 1)).astype(np.float32)
        hidden *= rows  # a token that sees nothing sees all, and its row is taken out after
        return super().inputs(shape, seed) | {
            "picture": [
                torch.from_numpy(rng.standard_normal((b, 2, TOKENS, 16)).astype(np.float32))
                for _ in range(2)
            ],
            "picture_mask": torch.from_numpy(hidden),
            "picture_rows": torch.from_numpy(rows),
        }

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        rows = {0: "batch", 2: "sequence"}
        across = {"picture": [{0: "batch"}] * 2, "picture_mask": rows, "picture_rows": rows}
        return super().dynamic | across

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs."""
        inputs, outputs = super().names
        return [*inputs, "picture.key", "picture.value", "picture_mask", "picture_rows"], outputs


class Across(nn.Module):
    """Embeddings, mask, positions, a flat cache and the picture to logits and the longer cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
        picture: list[torch.Tensor],
        picture_mask: torch.Tensor,
        picture_rows: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        pairs = list(zip(past[::2], past[1::2], strict=True))
        pairs.insert(CROSS, (picture[0], picture[1]))
        cache = DynamicCache(pairs)
        out = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cross_attention_mask=picture_mask,
            full_text_row_masked_out_mask=picture_rows,
            past_key_values=cache,
            use_cache=True,
        )
        own = [layer for i, layer in enumerate(cache.layers) if i != CROSS]
        return out.logits, *[t for layer in own for t in (layer.keys, layer.values)]


@dataclass(frozen=True)
class Tiles(Tower):
    """A tower of pictures in tiles, told which tiles are there."""

    refused = ("patch_embed", "skip_layer_norm")

    def build(self) -> nn.Module:
        """The random tower."""
        return Tiled(super().build().model)

    def inputs(self, size: Any, seed: int) -> dict[str, torch.Tensor]:
        """Random pictures of one or two tiles."""
        rng = np.random.default_rng(seed)
        pixels = rng.standard_normal((size, 1, 2, 3, 32, 32)).astype(np.float32)
        shape = rng.integers(1, 4, (size, 1))
        there = np.stack([np.ones_like(shape), shape > 1], -1).astype(np.int64)
        return {
            "pixel_values": torch.from_numpy(pixels),
            "aspect_ratio_ids": torch.from_numpy(shape),
            "aspect_ratio_mask": torch.from_numpy(there),
        }

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        return {name: {0: "batch"} for name in names}


class Tiled(nn.Module):
    """Tiles to features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        aspect_ratio_ids: torch.Tensor,
        aspect_ratio_mask: torch.Tensor,
    ) -> torch.Tensor:
        return self.model(pixel_values, aspect_ratio_ids, aspect_ratio_mask).last_hidden_state


TEXT = Crossed(
    "Llama 3.2 Vision", "MllamaTextConfig",
    {"num_hidden_layers": LAYERS + 1, "cross_attention_layers": [CROSS],
     "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}},
    {"rms_norm": BLOCK["rms_norm"] + 3, "silu": LAYERS + 1, "skip_rms_norm": 2 * LAYERS + 2,
     "head_norm": 1, "matmul_nbits": 7 * LAYERS + 6},
    lambda c: MllamaForCausalLM._from_config(c, attn_implementation=GROUPED),
)  # fmt: skip
TOWER = Tiles(
    "Llama 3.2 Vision", "mllama.modeling_mllama", "MllamaVisionConfig", "MllamaVisionModel",
    {"attention_heads": 4, "num_global_layers": 1, "max_num_tiles": 2,
     "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [0, 1]},
    {"multi_head_attention": LAYERS + 1, "skip_layer_norm": 2 * LAYERS + 1},
)  # fmt: skip
