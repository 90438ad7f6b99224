"""Qwen3-VL with a mixture of experts: a router and experts replace the MLPs of the dense family."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import Qwen3VLMoeForConditionalGeneration

from export_min.experts import EVERY
from export_min.families import Family, Stack, qwen3_vl
from export_min.graphs import Spec


class MoeDecoder(qwen3_vl.DeepStackDecoder):
    """A decoder whose experts are traced without a loop."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.model.language_model.config._experts_implementation = EVERY


def specs(config: Any) -> tuple[Spec, Spec, Spec]:
    """Return the three graphs for a `Qwen3VLMoeConfig`."""
    vision, embedding, decoder = qwen3_vl.specs(config)
    return vision, embedding, dataclasses.replace(decoder, module=MoeDecoder)


def rules(config: Any) -> Iterator[tuple[bool, str]]:
    """Require what the dense family requires, and a valid number and size of experts."""
    yield from qwen3_vl.rules(config)
    text = config.text_config
    experts, active = text.num_experts, text.num_experts_per_tok
    yield experts > 0, f"text_config.num_experts is {experts}, needs to be positive"
    yield (
        0 < active <= experts,
        f"text_config.num_experts_per_tok is {active}, of {experts} experts",
    )
    width, step = text.moe_intermediate_size, text.decoder_sparse_step
    yield width > 0, f"text_config.moe_intermediate_size is {width}"
    yield step > 0, f"text_config.decoder_sparse_step is {step}"


def dense(config: Any) -> list[int]:
    """Return the indexes of the decoder layers without experts."""
    text = config.text_config
    return [
        i
        for i in range(text.num_hidden_layers)
        if i in text.mlp_only_layers or (i + 1) % text.decoder_sparse_step
    ]


def kinds(config: Any) -> list[int]:
    """Return for each decoder layer the index of the first layer of the same kind.

    Each layer that adds a DeepStack level is a kind of its own. The remaining layers are of two
    kinds: with experts and without.
    """
    levels = len(config.vision_config.deepstack_visual_indexes)
    plain, first = dense(config), dict[object, int]()
    return [
        first.setdefault(i if i < levels else ("dense" if i in plain else "sparse"), i)
        for i in range(config.text_config.num_hidden_layers)
    ]


def shorten(config: Any) -> Any:
    """Keep one decoder layer of each kind, and the vision blocks that the dense family keeps."""
    short = qwen3_vl.shorten(config)
    kept, plain = sorted(set(kinds(config))), dense(config)
    text = copy.deepcopy(config.text_config)
    text.num_hidden_layers = len(kept)
    text.decoder_sparse_step = 1
    text.mlp_only_layers = [i for i, layer in enumerate(kept) if layer in plain]
    short.text_config = text
    return short


def stacks(config: Any) -> dict[str, Stack]:
    """Return the vision stack of the dense family, and a decoder stack of `kinds`."""
    like = kinds(config)
    kept = sorted(set(like))
    order = [kept.index(first) for first in like]
    decoder = Stack("model.language_model.layers", order, len(kept))
    return qwen3_vl.stacks(config) | {"decoder": decoder}


FAMILY = Family(
    Qwen3VLMoeForConditionalGeneration,
    specs,
    rules,
    shorten,
    stacks,
    turned=r".+\.mlp\.experts\.(gate_up|down)_proj",
)
