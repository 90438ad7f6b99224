"""Text decoders of vision-language models, tiny and random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import nn
from traced import trace
from transformers import DynamicCache

from export_min.attention import GROUPED

LAYERS = 2
WEIGHT = 64
"""Bytes from which an initializer counts as a weight: tiny models have tiny weights."""
COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
SHAPES = ((1, 5, 0), (3, 4, 0), (2, 1, 9), (1, 4, 3), (1, 1, 20))
"""Batch, sequence, past; none is the example's. More rows than one with a past and more than one
new position is what onnxruntime's GroupQueryAttention refuses."""

BLOCK = {  # sites of a plain decoder
    "rms_norm": 2 * LAYERS + 1,
    "half_angles": 2,
    "freq_table": 2,
    "rotary": 2 * LAYERS,
    "group_query_attention": LAYERS,
    "silu": LAYERS,
    "skip_rms_norm": 2 * LAYERS,
    "last_logits": 1,
    "matmul_nbits": 7 * LAYERS + 1,
}
MULTIAXIAL = {"half_angles": 0, "rotary": 0, "multimodal_rotary": 2 * LAYERS}
SANDWICH = {"rms_norm": 4 * LAYERS + 1, "weight_shift": 4 * LAYERS + 1}


@dataclass(frozen=True)
class Text:
    """A family's decoder.

    Attributes:
        name: of the family.
        config: the class of its text configuration.
        sizes: what differs from `COMMON`.
        expect: sites of each pass, where they differ from `BLOCK`.
        model: builds the module with `.forward(inputs_embeds, ..., past_key_values)`.
        axes: axes of a position: 3 for multimodal rotary embedding.
    """

    name: str
    config: str
    sizes: dict[str, Any] = field(default_factory=dict)
    expect: dict[str, int] = field(default_factory=dict)
    model: Callable[[Any], nn.Module] = lambda c: causal(c)
    axes: int = 1
    recipe = "decoder"
    refused = ()
    weight = WEIGHT

    @property
    def sites(self) -> dict[str, int]:
        """Sites of each pass, those of no pass left out."""
        return {name: n for name, n in (BLOCK | self.expect).items() if n}

    def write(self, folder: Path) -> None:
        """Export and run."""
        trace(self, folder)

    def build(self) -> nn.Module:
        """The random model."""
        torch.manual_seed(0)
        return Decoder(stir(self.model(getattr(tf, self.config)(**(COMMON | self.sizes))).eval()))

    def inputs(self, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
        """Random inputs by argument name."""
        b, s, p = shape
        rng = np.random.default_rng(seed)
        positions = np.broadcast_to(np.arange(p, p + s), (self.axes, b, s))
        if self.axes > 1:
            positions = positions + rng.integers(0, 7, (self.axes, b, s))

        def normal(*size: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(size).astype(np.float32))

        width = self.sizes.get("head_dim", 16)
        return {
            "inputs_embeds": normal(b, s, 64),
            "attention_mask": torch.ones(b, p + s, dtype=torch.int64),
            "position_ids": torch.from_numpy(positions if self.axes > 1 else positions[0].copy()),
            "past": [normal(b, 2, p, width) for _ in range(2 * LAYERS)],
        }

    def example(self) -> dict[str, Any]:
        """Inputs to trace with."""
        return self.inputs((2, 5, 3), 0)

    def cases(self) -> Iterator[dict[str, Any]]:
        """Inputs of other shapes."""
        for seed, shape in enumerate(SHAPES):
            yield self.inputs(shape, seed + 1)

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        first = 1 if self.axes > 1 else 0
        return {
            "inputs_embeds": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "total"},
            "position_ids": {first: "batch", first + 1: "sequence"},
            "past": [{0: "batch", 2: "past"}] * (2 * LAYERS),
        }

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs."""
        parts = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
        return (
            ["inputs_embeds", "attention_mask", "position_ids"]
            + [f"past_key_values.{part}" for part in parts],
            ["logits", *(f"present.{part}" for part in parts)],
        )


def stir(model: nn.Module) -> nn.Module:
    """Random norms and biases: ones and zeros would hide one that is left out."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


class Decoder(nn.Module):
    """Embeddings, mask, positions and a flat cache to logits and the longer cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits, *[t for layer in cache.layers for t in (layer.keys, layer.values)]


class Headed(nn.Module):
    """A text model without a causal class of its own, and a head."""

    def __init__(self, text: nn.Module, config: Any) -> None:
        super().__init__()
        self.model = text
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        out.logits = self.lm_head(out.last_hidden_state)
        return out


def causal(config: Any) -> nn.Module:
    """The family's own causal language model."""
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation=GROUPED)


def eager(config: Any) -> nn.Module:
    """One that has no other attention than the written-out one, for its soft cap."""
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def headed(name: str) -> Callable[[Any], nn.Module]:
    """A text model of a class, and a head."""
    return lambda c: Headed(getattr(tf, name)._from_config(c, attn_implementation=GROUPED), c)


TEXTS = (
    Text("SmolVLM", "LlamaConfig"),
    Text("Gemma 3", "Gemma3TextConfig",
         {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16,
          "layer_types": ["sliding_attention", "full_attention"]},
         {**SANDWICH, "rms_norm": 6 * LAYERS + 1, "weight_shift": 6 * LAYERS + 1, "head_norm":
          2 * LAYERS, "half_angles": 4, "freq_table": 4, "silu": 0}),
    Text("PaliGemma", "GemmaConfig", {"head_dim": 16},
         {"weight_shift": 2 * LAYERS + 1, "silu": 0}),
    Text("PaliGemma 2", "Gemma2Config",
         {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
         {**SANDWICH, "attention": LAYERS, "silu": 0}, eager),
    Text("LLaVA-OneVision", "Qwen2Config"),
    Text("InternVL", "Qwen3Config", {"head_dim": 16}, {"rms_norm": 4 * LAYERS + 1}),
    Text("Mistral 3", "MistralConfig", {"head_dim": 16, "sliding_window": 6}),
    Text("Phi-4-multimodal", "Phi3Config", {"partial_rotary_factor": 0.5},
         {"slices": LAYERS, "matmul_nbits": 4 * LAYERS + 1}),
    Text("Aya Vision", "Cohere2Config",
         {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
         {"layer_norm": LAYERS + 1, "rms_norm": 0, "skip_rms_norm": 0, "skip_layer_norm": LAYERS,
          "rotary": LAYERS}),
    Text("Granite Vision", "GraniteConfig",
         {"residual_multiplier": 0.5, "logits_scaling": 4.0, "attention_multiplier": 0.3}),
    Text("HunyuanOCR", "HunYuanDenseV1Config", {"head_dim": 16},
         {"rms_norm": 4 * LAYERS + 1, "head_norm": 2 * LAYERS}),
    Text("Molmo", "Olmo2Config", {},
         {"rms_norm": 4 * LAYERS + 1, "skip_rms_norm": 1}),
    Text("GLM-4V", "Glm4vTextConfig",
         {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
         {**MULTIAXIAL, "rms_norm": 4 * LAYERS + 1, "matmul_nbits": 6 * LAYERS + 1},
         headed("Glm4vTextModel"), 3),
    Text("Qwen2-VL", "Qwen2VLTextConfig", {"rope_parameters": MROPE}, MULTIAXIAL,
         headed("Qwen2VLTextModel"), 3),
    Text("Qwen2.5-VL", "Qwen2_5_VLTextConfig", {"rope_parameters": MROPE}, MULTIAXIAL,
         headed("Qwen2_5_VLTextModel"), 3),
)  # fmt: skip
