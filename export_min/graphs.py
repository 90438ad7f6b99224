"""The three graphs of Qwen3-VL as thin modules: what goes in, what comes out, what is dynamic.

Each module calls Hugging Face's own; none reimplements a layer. Every size is dynamic: batch,
sequence, past, images, patches. Letters: B batch, S sequence, P past, T = P + S, H text width,
D number of DeepStack layers, I images, N patches, M = N / merge**2 image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import DynamicCache, Qwen3VLForConditionalGeneration
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
)

from export_min.attention import GROUPED, PACKED

Model: TypeAlias = Qwen3VLForConditionalGeneration


class Vision(nn.Module):
    """`pixel_values [N, C*t*p*p]`, `image_grid_thw [I, 3]` to image and DeepStack features.

    `image_features [M, H]` and `deepstack_features [D, M, H]`. Any mix of grids and frames in one
    call; attention stays inside a frame, as in `Qwen3VLVisionModel`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.model
        self.model.visual.config._attn_implementation = PACKED

    def forward(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        visual = self.model.visual
        merge = visual.spatial_merge_size
        patches = pixel_values.shape[0]
        indices, weights = get_vision_interpolation_indices_and_weights(
            image_grid_thw,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        torch._check(indices.shape[0] == patches)  # type: ignore[no-untyped-call]
        out = visual(
            pixel_values,
            grid_thw=image_grid_thw,
            cu_seqlens=get_vision_cu_seqlens(image_grid_thw),
            max_seqlen=0,  # keeps transformers from asking for it with .item(); nobody reads it
            interp_indices=indices,
            interp_weights=weights,
            position_ids=patch_positions(image_grid_thw, patches, merge),
            return_dict=True,
        )
        return out.pooler_output, torch.stack(out.deepstack_features)


def patch_positions(grid_thw: torch.Tensor, patches: int, merge: int) -> torch.Tensor:
    """Row and column of each patch, `[N, 2]`, in merge-block order.

    transformers' own `get_vision_position_ids` loops over `grid_thw.tolist()`; this is the same
    closed form without the loop.
    """
    position = torch.arange(patches, device=grid_thw.device)
    counts = grid_thw.prod(-1)
    ends = counts.cumsum(0)
    image = (position[:, None] >= ends[None, :]).sum(-1)
    height, width = grid_thw[image, 1], grid_thw[image, 2]
    within = (position - (ends - counts)[image]) % (height * width)
    block, inner = within // merge**2, within % merge**2
    row = block // (width // merge) * merge + inner // merge
    column = block % (width // merge) * merge + inner % merge
    return torch.stack([row, column], dim=-1)


class Embedding(nn.Module):
    """`input_ids [B, S]`, `image_features [M, H]` to `inputs_embeds [B, S, H]`.

    Also `visual_pos_masks [B, S]`: where an image or a video token stands. M must be the number
    of those, as `masked_scatter` in `Qwen3VLModel.forward` asks.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.model
        self.placeholders = (model.config.image_token_id, model.config.video_token_id)

    def forward(
        self, input_ids: torch.Tensor, image_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeds = self.model.language_model.embed_tokens(input_ids)
        image, video = self.placeholders
        visual = (input_ids == image) | (input_ids == video)
        return embeds.masked_scatter(visual[..., None].expand_as(embeds), image_features), visual


class Decoder(nn.Module):
    """Text decoder with its cache: embeddings in, logits `[B, S, V]` and `present` out.

    `attention_mask [B, T]`, `position_ids [3, B, S]` (temporal, height, width),
    `visual_pos_masks [B, S]`, `deepstack_features [D, M, H]`, and a flat list of past keys and
    values, `[B, K, P, head_dim]` each, which makes one graph serve prefill and decoding.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.model.language_model.config._attn_implementation = GROUPED

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        visual_pos_masks: torch.Tensor,
        deepstack_features: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            visual_pos_masks=visual_pos_masks,
            deepstack_visual_embeds=list(deepstack_features.unbind(0)),
        )
        present = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        return self.lm_head(out.last_hidden_state), *present


@dataclass(frozen=True)
class Spec:
    """How to export one graph: the module, example inputs, dynamic axes, names."""

    name: str
    module: Callable[[Model], nn.Module]
    inputs: dict[str, Any]
    """Example inputs by the module's argument names."""
    dynamic: dict[str, Any]
    """Axis names, in the structure of `inputs`."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def specs(config: Any) -> tuple[Spec, Spec, Spec]:
    """The three graphs for a `Qwen3VLConfig`, with example inputs on the meta device.

    The examples avoid 0, 1 and equal sizes, which a trace would take for constants.
    """
    return vision(config), embedding(config), decoder(config)


def vision(config: Any) -> Spec:
    """Two images of different grids, one of them with two frames."""
    part, merge = config.vision_config, config.vision_config.spatial_merge_size
    grids = torch.tensor([[1, 2 * merge, 3 * merge], [2, 4 * merge, 2 * merge]])
    width = part.in_channels * part.temporal_patch_size * part.patch_size**2
    patches = int(grids.prod(-1).sum())
    return Spec(
        "vision",
        Vision,
        {
            "pixel_values": torch.empty(patches, width, device="meta"),
            "image_grid_thw": grids.to("meta"),
        },
        {"pixel_values": {0: "patches"}, "image_grid_thw": {0: "images"}},
        ("pixel_values", "image_grid_thw"),
        ("image_features", "deepstack_features"),
    )


def embedding(config: Any) -> Spec:
    """Two rows of four ids."""
    return Spec(
        "embedding",
        Embedding,
        {
            "input_ids": torch.empty(2, 4, dtype=torch.int64, device="meta"),
            "image_features": torch.empty(5, config.text_config.hidden_size, device="meta"),
        },
        {"input_ids": {0: "batch", 1: "sequence"}, "image_features": {0: "tokens"}},
        ("input_ids", "image_features"),
        ("inputs_embeds", "visual_pos_masks"),
    )


def decoder(config: Any) -> Spec:
    """Two rows of five new positions after three cached ones."""
    text = config.text_config
    batch, sequence, past, tokens = 2, 5, 3, 4
    layers = range(text.num_hidden_layers)
    levels = len(config.vision_config.deepstack_visual_indexes)

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    cache = (batch, text.num_key_value_heads, past, text.head_dim)
    names = [f"{i}.{part}" for i in layers for part in ("key", "value")]
    return Spec(
        "decoder",
        Decoder,
        {
            "inputs_embeds": meta(batch, sequence, text.hidden_size),
            "attention_mask": meta(batch, past + sequence, dtype=torch.int64),
            "position_ids": meta(3, batch, sequence, dtype=torch.int64),
            "visual_pos_masks": meta(batch, sequence, dtype=torch.bool),
            "deepstack_features": meta(levels, tokens, text.hidden_size),
            "past": [meta(*cache) for _ in names],
        },
        {
            "inputs_embeds": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "total"},
            "position_ids": {1: "batch", 2: "sequence"},
            "visual_pos_masks": {0: "batch", 1: "sequence"},
            "deepstack_features": {1: "tokens"},
            "past": [{0: "batch", 2: "past"} for _ in names],
        },
        (
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "visual_pos_masks",
            "deepstack_features",
            *(f"past_key_values.{name}" for name in names),
        ),
        ("logits", *(f"present.{name}" for name in names)),
    )
