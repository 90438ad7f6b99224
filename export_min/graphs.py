"""The three graphs of a vision-language model as thin modules: what goes in and out, what varies.

Each module calls Hugging Face's own; none reimplements a layer. Every size is dynamic: batch,
sequence, past, images, patches. Letters: B batch, S sequence, P past, T = P + S, H text width,
D number of DeepStack layers, I images, N patches, M = N / merge**2 image tokens.

What a family adds or changes is in its own module under `export_min.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from export_min.attention import GROUPED, PACKED


class Vision(nn.Module):
    """`pixel_values [N, C*t*p*p]`, `image_grid_thw [I, 3]` to `image_features [M, H]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.model.visual.config._attn_implementation = PACKED


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

    M must be the number of image and video tokens, as `masked_scatter` in Hugging Face's own
    forward asks.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.placeholders = (model.config.image_token_id, model.config.video_token_id)

    def merge(
        self, input_ids: torch.Tensor, image_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings, and `[B, S]` where a picture's features stand."""
        embeds = self.model.language_model.embed_tokens(input_ids)
        image, video = self.placeholders
        visual = (input_ids == image) | (input_ids == video)
        return embeds.masked_scatter(visual[..., None].expand_as(embeds), image_features), visual

    def forward(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> Any:
        return self.merge(input_ids, image_features)[0]


class Decoder(nn.Module):
    """Text decoder with its cache: embeddings in, logits `[B, S, V]` and `present` out.

    `attention_mask [B, T]`, `position_ids [3, B, S]` (temporal, height, width), and a flat list of
    past keys and values, `[B, K, P, head_dim]` each, which makes one graph serve prefill and
    decoding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.model.language_model.config._attn_implementation = GROUPED

    def decode(self, past: list[torch.Tensor], **inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run the decoder on a flat past."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model.language_model(past_key_values=cache, use_cache=True, **inputs)
        present = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        return self.lm_head(out.last_hidden_state), *present


class PlainDecoder(Decoder):
    """A decoder that takes nothing else."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        return self.decode(
            past,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
        )


@dataclass(frozen=True)
class Spec:
    """How to export one graph: the module, example inputs, dynamic axes, names.

    The examples avoid 0, 1 and equal sizes, which a trace would take for constants.
    """

    name: str
    module: Callable[[Any], nn.Module]
    inputs: dict[str, Any]
    """Example inputs by the module's argument names."""
    dynamic: dict[str, Any]
    """Axis names, in the structure of `inputs`."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without numbers."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def vision(
    config: Any,
    module: Callable[[Any], nn.Module],
    outputs: tuple[str, ...] = ("image_features",),
) -> Spec:
    """Two images of different grids, one of them with two frames."""
    part, merge = config.vision_config, config.vision_config.spatial_merge_size
    grids = torch.tensor([[1, 2 * merge, 3 * merge], [2, 4 * merge, 2 * merge]])
    width = part.in_channels * part.temporal_patch_size * part.patch_size**2
    patches = int(grids.prod(-1).sum())
    return Spec(
        "vision",
        module,
        {"pixel_values": meta(patches, width), "image_grid_thw": grids.to("meta")},
        {"pixel_values": {0: "patches"}, "image_grid_thw": {0: "images"}},
        ("pixel_values", "image_grid_thw"),
        outputs,
    )


def embedding(
    config: Any,
    module: Callable[[Any], nn.Module] = Embedding,
    outputs: tuple[str, ...] = ("inputs_embeds",),
) -> Spec:
    """Two rows of four ids."""
    return Spec(
        "embedding",
        module,
        {
            "input_ids": meta(2, 4, dtype=torch.int64),
            "image_features": meta(5, config.text_config.hidden_size),
        },
        {"input_ids": {0: "batch", 1: "sequence"}, "image_features": {0: "tokens"}},
        ("input_ids", "image_features"),
        outputs,
    )


def decoder(
    config: Any,
    module: Callable[[Any], nn.Module] = PlainDecoder,
    inputs: Mapping[str, torch.Tensor] | None = None,
    dynamic: Mapping[str, dict[int, str]] | None = None,
) -> Spec:
    """Two rows of five new positions after three cached ones.

    Args:
        config: the whole configuration.
        module: the decoder's module.
        inputs: example inputs beyond the common ones, for two rows of five.
        dynamic: their axis names.
    """
    text = config.text_config
    batch, sequence, past = 2, 5, 3
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = (batch, text.num_key_value_heads, past, head_dim)
    names = [f"{i}.{part}" for i in range(text.num_hidden_layers) for part in ("key", "value")]
    common = {
        "inputs_embeds": meta(batch, sequence, text.hidden_size),
        "attention_mask": meta(batch, past + sequence, dtype=torch.int64),
        "position_ids": meta(3, batch, sequence, dtype=torch.int64),
        **(inputs or {}),
    }
    axes = {
        "inputs_embeds": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total"},
        "position_ids": {1: "batch", 2: "sequence"},
        **(dynamic or {}),
    }
    return Spec(
        "decoder",
        module,
        {**common, "past": [meta(*cache) for _ in names]},
        {**axes, "past": [{0: "batch", 2: "past"} for _ in names]},
        (*common, *(f"past_key_values.{name}" for name in names)),
        ("logits", *(f"present.{name}" for name in names)),
    )
