"""A decoder whose cache has a fixed length, transformers' StaticCache, as inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stock import LAYERS, Cached, Decoder, Inputs
from torch import nn
from transformers import StaticCache

LENGTH = 32
"""Positions of the cache."""


@dataclass(frozen=True)
class FixedDecoder(Decoder):
    """A causal language model that writes new keys into its cache."""

    def build(self, attention: str) -> nn.Module:
        """The random model, behind a flat cache."""
        return Fixed(super().build(attention).model)

    def inputs(self, batch: int, sequence: int, past: int, seed: int, padding: int = 0) -> Inputs:
        """Random tokens; positions of the cache that are not filled yet hold zeros."""
        found = super().inputs(batch, sequence, LENGTH, seed)
        mask = np.ones((batch, LENGTH), np.int64)
        if padding:
            mask[0, past + sequence - padding : past + sequence] = 0
        positions = np.broadcast_to(np.arange(past, past + sequence), (batch, sequence))
        for part in found["past_key_values"]:
            part[:, :, past:] = 0
        return found | {
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions.copy()),
        }

    def cases(self) -> Iterator[Inputs]:
        """Batch 1 and 2, filled and not; a padded cache of this kind has no comparable rest."""
        for seed, shape in enumerate(((1, 7, 0), (2, 4, 0), (2, 1, 9), (1, 4, 6), (1, 1, 31))):
            yield self.inputs(*shape, seed + 1)

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        return super().dynamic | {
            "attention_mask": {0: "batch"},
            "past_key_values": [{0: "batch"}] * (2 * LAYERS),
        }


class Fixed(Cached):
    """A causal model whose cache of fixed length goes in and out as a list."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = StaticCache(config=self.model.config, max_cache_len=LENGTH)
        pairs = zip(past_key_values[::2], past_key_values[1::2], strict=True)
        for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys.clone(), values.clone()
            layer.cumulative_length = position_ids[0, 0].clone()  # it counts in place
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = out.past_key_values.layers
        return out.logits, *[part for layer in layers for part in (layer.keys, layer.values)]


FIXED = FixedDecoder("Llama, StaticCache", "LlamaConfig", (4, 2, 64))
