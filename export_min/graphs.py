"""The three graphs of a vision-language model as modules with named inputs and outputs.

Each module calls the one of transformers; none reimplements a layer. Every size is dynamic: batch,
sequence, past, images and patches. Shapes use these letters: B batch, S sequence, P past,
T = P + S, H hidden size of the text model, D number of DeepStack levels, I images, N patches,
M = N / merge**2 image tokens, K key/value heads, V vocabulary.

The modules in `export_min.families` hold what a family adds or changes.
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
    """Vision tower: `pixel_values [N, C*t*p*p]` and `image_grid_thw [I, 3]` to image features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.model.visual.config._attn_implementation = PACKED


def patch_positions(grid_thw: torch.Tensor, patches: int, merge: int) -> torch.Tensor:
    """Return row and column of each patch, `[N, 2]`, in the order of merge blocks.

    The result equals that of `get_vision_position_ids` in transformers, which loops over
    `grid_thw.tolist()` and therefore cannot be traced.
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
    """`input_ids [B, S]` and `image_features [M, H]` to `inputs_embeds [B, S, H]`.

    M must equal the number of image and video tokens in `input_ids`, as in transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.placeholders = (model.config.image_token_id, model.config.video_token_id)

    def merge(
        self, input_ids: torch.Tensor, image_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings, and a mask `[B, S]` that is true at image and video tokens."""
        embeds = self.model.language_model.embed_tokens(input_ids)
        image, video = self.placeholders
        visual = (input_ids == image) | (input_ids == video)
        return embeds.masked_scatter(visual[..., None].expand_as(embeds), image_features), visual

    def forward(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> Any:
        return self.merge(input_ids, image_features)[0]


class Decoder(nn.Module):
    """Text decoder with a key/value cache: embeddings to logits `[B, S, V]` and a new cache.

    It takes `attention_mask [B, T]`, `position_ids [3, B, S]` (temporal, height, width), and a
    flat list of past keys and values, `[B, K, P, head_dim]` each. Since P may be 0, the same graph
    serves prefill and decoding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.model.language_model.config._attn_implementation = GROUPED

    def decode(self, past: list[torch.Tensor], **inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run the decoder with the cache as a flat list: key and value of each layer in turn."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model.language_model(past_key_values=cache, use_cache=True, **inputs)
        present = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        return self.lm_head(out.last_hidden_state), *present


class PlainDecoder(Decoder):
    """A decoder without inputs beyond those of `Decoder`."""

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
    """How to export one graph: its module, example inputs, dynamic axes and names.

    The example sizes avoid 0 and 1, which torch.export makes constant, and differ from each other,
    because it may unify equal sizes.
    """

    name: str
    module: Callable[[Any], nn.Module]
    inputs: dict[str, Any]
    """Example inputs by the module's argument names."""
    dynamic: dict[str, Any]
    """Names of the dynamic axes, in the same structure as `inputs`."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a tensor on the meta device: a shape and a dtype without data."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def vision(
    config: Any,
    module: Callable[[Any], nn.Module],
    outputs: tuple[str, ...] = ("image_features",),
) -> Spec:
    """Describe the vision graph. The example is an image and a video of two frames."""
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
    """Describe the embedding graph. The example is a batch of two rows of four tokens."""
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
    """Describe the decoder graph. In the example, two rows of five tokens follow three cached ones.

    Args:
        config: configuration of the whole model.
        module: class of the decoder.
        inputs: additional example inputs, for two rows of five tokens.
        dynamic: names of the dynamic axes of those inputs.
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
