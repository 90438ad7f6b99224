"""Text decoders of vision-language models, tiny and random, and how to export one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import nn
from transformers import DynamicCache

from export_min.attention import GROUPED

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


@dataclass(frozen=True)
class Text:
    """A family's decoder.

    Attributes:
        name: of the family.
        config: the class of its text configuration.
        sizes: what differs from `COMMON`.
        model: builds the module with `.forward(inputs_embeds, ..., past_key_values)`.
        axes: axes of a position: 3 for multimodal rotary embedding.
    """

    name: str
    config: str
    sizes: dict[str, Any] = field(default_factory=dict)
    model: Callable[[Any], nn.Module] = lambda c: causal(c)
    axes: int = 1

    def build(self) -> nn.Module:
        """The random model."""
        torch.manual_seed(0)
        config = getattr(tf, self.config)(**(COMMON | self.sizes))
        model = self.model(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:  # ones and zeros would hide a norm or bias left out
                    weight.add_(0.2 * torch.randn_like(weight))
        return Decoder(model)


def causal(config: Any) -> nn.Module:
    """The family's own causal language model."""
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation=GROUPED)


def eager(config: Any) -> nn.Module:
    """One that has no other attention than the written-out one, for its soft cap."""
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


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


def headed(name: str) -> Callable[[Any], nn.Module]:
    return lambda c: Headed(getattr(tf, name)._from_config(c, attn_implementation=GROUPED), c)


TEXTS = (
    Text("SmolVLM", "LlamaConfig"),
    Text("Gemma 3", "Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6,
         "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}),
    Text("PaliGemma", "GemmaConfig", {"head_dim": 16}),
    Text("PaliGemma 2", "Gemma2Config", {"head_dim": 16, "sliding_window": 6,
         "query_pre_attn_scalar": 16}, eager),
    Text("LLaVA-OneVision", "Qwen2Config"),
    Text("InternVL 3.5", "Qwen3Config", {"head_dim": 16}),
    Text("Mistral 3", "MistralConfig", {"head_dim": 16, "sliding_window": 6}),
    Text("Phi-4-multimodal", "Phi3Config", {"partial_rotary_factor": 0.5}),
    Text("Aya Vision", "Cohere2Config", {"sliding_window": 6}),
    Text("Granite Vision", "GraniteConfig"),
    Text("GLM-4V", "Glm4vTextConfig", {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2],
         "partial_rotary_factor": 0.5}}, headed("Glm4vTextModel"), 3),
    Text("Qwen2-VL", "Qwen2VLTextConfig", {"rope_parameters": MROPE}, headed("Qwen2VLTextModel"), 3),
    Text("Qwen2.5-VL", "Qwen2_5_VLTextConfig", {"rope_parameters": MROPE},
         headed("Qwen2_5_VLTextModel"), 3),
)  # fmt: skip
