"""Qwen2-VL: no DeepStack, biases on queries, keys and values, M-RoPE split into sections."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens

from export_min.families import Family, Stack
from export_min.graphs import Spec, Vision, decoder, embedding, patch_positions, vision

RENAMES = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
)
"""Published checkpoints name the vision tower `visual.*` and the decoder `model.*`, which are now
`model.visual.*` and `model.language_model.*` in transformers."""


class PackedVision(Vision):
    """Vision tower for pictures of any grids and numbers of frames. Attention stays in a frame."""

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
        visual, patches = self.model.visual, pixel_values.shape[0]
        out = visual(
            pixel_values,
            grid_thw=image_grid_thw,
            cu_seqlens=get_vision_cu_seqlens(image_grid_thw),
            max_seqlen=0,  # keeps transformers from asking for it with .item(); nobody reads it
            position_ids=patch_positions(image_grid_thw, patches, visual.spatial_merge_size),
            return_dict=True,
            **self.order(image_grid_thw, patches),
        )
        features: torch.Tensor = out.pooler_output
        return features

    def order(self, grid_thw: torch.Tensor, patches: int) -> dict[str, Any]:
        """Return further keyword arguments for the vision tower, computed from the grids."""
        return {}


def specs(config: Any) -> tuple[Spec, Spec, Spec]:
    """Return the three graphs for a `Qwen2VLConfig`."""
    return vision(config, PackedVision), embedding(config), decoder(config)


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Require vision features as wide as the decoder, and a valid decoder."""
    text, tower = config.text_config, config.vision_config
    yield (
        tower.hidden_size == text.hidden_size,
        f"vision_config.hidden_size is {tower.hidden_size}, but text_config.hidden_size is "
        f"{text.hidden_size}",
    )
    yield from text_rules(config)


def text_rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Yield the requirements on the decoder of Qwen2-VL or Qwen2.5-VL."""
    text = config.text_config
    kinds, layers = text.layer_types, text.num_hidden_layers
    yield len(kinds) == layers, f"layer_types has {len(kinds)} entries for {layers} layers"
    section = text.rope_parameters.get("mrope_section", (16, 24, 24))
    half = text.hidden_size // text.num_attention_heads // 2
    yield (
        len(section) == 3 and sum(section) == half,
        f"mrope_section {list(section)} is not three numbers that add up to {half} frequencies",
    )


def shorten(config: Any) -> Any:
    """Keep one vision block and one decoder layer of each kind."""
    short = copy.deepcopy(config)
    short.vision_config.depth = 1
    shorten_text(short.text_config)
    return short


def shorten_text(text: Any) -> None:
    """Keep one decoder layer of each kind: with full and with sliding-window attention."""
    text.layer_types = list(dict.fromkeys(text.layer_types))
    text.num_hidden_layers = len(text.layer_types)


def stacks(config: Any) -> dict[str, Stack]:
    """Return the vision stack, whose blocks are all equal, and the decoder stack."""
    blocks = Stack.of("model.visual.blocks", [""] * config.vision_config.depth)
    return {"vision": blocks, "decoder": text_stack(config)}


def text_stack(config: Any) -> Stack:
    """Return the decoder stack, whose layers differ by the kind of their attention."""
    return Stack.of("model.language_model.layers", config.text_config.layer_types)


FAMILY = Family(
    Qwen2VLForConditionalGeneration,
    specs,
    rules,
    shorten,
    stacks,
    parts=("vision_config",),
    renames=RENAMES,
)
