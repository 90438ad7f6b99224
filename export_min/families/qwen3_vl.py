"""Qwen3-VL, dense. The first decoder layers add DeepStack features of the vision tower."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
)

from export_min.families import Family, Stack
from export_min.graphs import (
    Decoder,
    Embedding,
    Spec,
    Vision,
    decoder,
    embedding,
    meta,
    patch_positions,
    vision,
)


class DeepStackVision(Vision):
    """Vision tower with outputs `image_features [M, H]` and `deepstack_features [D, M, H]`.

    The inputs are `pixel_values [N, C*t*p*p]` and `image_grid_thw [I, 3]`. One call takes pictures
    of any grids and numbers of frames. Attention stays within a frame, as in `Qwen3VLVisionModel`.
    """

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
            max_seqlen=0,  # unused, but without it transformers would call .item()
            interp_indices=indices,
            interp_weights=weights,
            position_ids=patch_positions(image_grid_thw, patches, merge),
            return_dict=True,
        )
        return out.pooler_output, torch.stack(out.deepstack_features)


class MarkedEmbedding(Embedding):
    """Embedding with a second output: `visual_pos_masks [B, S]`, true at image and video tokens."""

    def forward(
        self, input_ids: torch.Tensor, image_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.merge(input_ids, image_features)


class DeepStackDecoder(Decoder):
    """Decoder that also takes `visual_pos_masks [B, S]` and `deepstack_features [D, M, H]`."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        visual_pos_masks: torch.Tensor,
        deepstack_features: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        return self.decode(
            past,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            visual_pos_masks=visual_pos_masks,
            deepstack_visual_embeds=list(deepstack_features.unbind(0)),
        )


def specs(config: Any) -> tuple[Spec, Spec, Spec]:
    """Return the three graphs for a `Qwen3VLConfig` or a `Qwen3VLMoeConfig`."""
    levels = len(config.vision_config.deepstack_visual_indexes)
    width, tokens = config.text_config.hidden_size, 4
    return (
        vision(config, DeepStackVision, ("image_features", "deepstack_features")),
        embedding(config, MarkedEmbedding, ("inputs_embeds", "visual_pos_masks")),
        decoder(
            config,
            DeepStackDecoder,
            {
                "visual_pos_masks": meta(2, 5, dtype=torch.bool),
                "deepstack_features": meta(levels, tokens, width),
            },
            {
                "visual_pos_masks": {0: "batch", 1: "sequence"},
                "deepstack_features": {1: "tokens"},
            },
        ),
    )


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Require valid DeepStack levels, and vision features as wide as the decoder."""
    text, tower = config.text_config, config.vision_config
    yield bool(tower.deepstack_visual_indexes), "vision_config.deepstack_visual_indexes is empty"
    yield (
        tower.out_hidden_size == text.hidden_size,
        f"vision_config.out_hidden_size is {tower.out_hidden_size}, but text_config.hidden_size is "
        f"{text.hidden_size}",
    )
    levels = list(tower.deepstack_visual_indexes)
    yield (
        levels == sorted(set(levels)) and 0 <= levels[0] <= levels[-1] < tower.depth,
        f"deepstack_visual_indexes {levels} are not rising indexes of {tower.depth} blocks",
    )


def shorten(config: Any) -> Any:
    """Keep one layer for each DeepStack level and a plain one, in vision tower and decoder."""
    short = copy.deepcopy(config)
    levels = len(config.vision_config.deepstack_visual_indexes)
    short.text_config.num_hidden_layers = min(levels + 1, config.text_config.num_hidden_layers)
    short.vision_config.depth = levels + 1
    short.vision_config.deepstack_visual_indexes = list(range(levels))
    return short


def stacks(config: Any) -> dict[str, Stack]:
    """Return the stacks of the vision tower and of the decoder.

    Each of the first decoder layers adds one DeepStack level. In the vision tower, each block in
    `deepstack_visual_indexes` produces one. The remaining layers of a stack are equal.
    """
    indexes = list(config.vision_config.deepstack_visual_indexes)
    plain, layers = len(indexes), config.text_config.num_hidden_layers
    blocks = range(config.vision_config.depth)
    return {
        "vision": Stack(
            "model.visual.blocks",
            [indexes.index(i) if i in indexes else plain for i in blocks],
            plain + 1,
        ),
        "decoder": Stack(
            "model.language_model.layers",
            [min(i, plain) for i in range(layers)],
            min(plain + 1, layers),
        ),
    }


FAMILY = Family(Qwen3VLForConditionalGeneration, specs, rules, shorten, stacks)
