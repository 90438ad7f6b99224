"""Models as a user would take them: transformers' own attention, published head widths, two layers.

Everything but the number of layers, the vocabulary and the inner widths is what the published
configurations say, so that shapes and constants are as large as in real graphs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import nn
from transformers import DynamicCache

LAYERS = 2
VOCABULARY = 512

Inputs = dict[str, Any]
"""Arguments of a model by name; the cache is a list of tensors."""


@dataclass(frozen=True)
class Decoder:
    """A causal language model with a cache.

    Attributes:
        name: of the family.
        config: the class of its configuration.
        heads: query heads, key heads, and the width of a head.
        norms: RMS norms of a layer; one more stands before the head.
        skips: norms of a layer whose input is a residual sum.
        gate: whether its MLP is gated by SiLU.
        rotations: rotary embeddings of all layers, queries and keys.
        sizes: what else differs from the configuration's defaults.
    """

    name: str
    config: str
    heads: tuple[int, int, int]
    norms: int = 2
    skips: int = 2
    gate: bool = True
    rotations: int = 2 * LAYERS
    sizes: dict[str, Any] = field(default_factory=dict)
    recipe = "decoder"

    @property
    def expected(self) -> dict[str, int]:
        """Fused nodes that the architecture has a place for, by op type."""
        return {
            "GroupQueryAttention": LAYERS,
            "RotaryEmbedding": self.rotations,
            "norms": self.norms * LAYERS + 1,
            "SkipSimplifiedLayerNormalization": self.skips * LAYERS,
            "QuickGelu": LAYERS if self.gate else 0,
        }

    def build(self, attention: str) -> nn.Module:
        """The random model, behind a flat cache."""
        torch.manual_seed(0)
        config = getattr(tf, self.config)(**self.settings)
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return Cached(stir(model.eval()))

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the configuration."""
        heads, kv_heads, width = self.heads
        plain: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": heads * width,
            "intermediate_size": 2 * width + 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": width,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return {name: size for name, size in (plain | self.sizes).items() if size is not None}

    def inputs(self, batch: int, sequence: int, past: int, seed: int, padding: int = 0) -> Inputs:
        """Random tokens behind a random cache; `padding` tokens at the end of the first row."""
        _, kv_heads, width = self.heads
        rng = np.random.default_rng(seed)
        mask = np.ones((batch, past + sequence), np.int64)
        if padding:
            mask[0, -padding:] = 0
        cache = rng.standard_normal((2 * LAYERS, batch, kv_heads, past, width))
        positions = np.broadcast_to(np.arange(past, past + sequence), (batch, sequence))
        return {
            "input_ids": torch.from_numpy(rng.integers(3, VOCABULARY, (batch, sequence))),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions.copy()),
            "past_key_values": list(torch.from_numpy(cache.astype(np.float32))),
        }

    def example(self) -> Inputs:
        """Inputs to trace with."""
        return self.inputs(2, 5, 3, 0)

    def cases(self) -> Iterator[Inputs]:
        """Batch 1 and 2, with and without past, padded at the end; none is the example."""
        shapes = (
            (1, 7, 0, 0),
            (2, 4, 0, 0),
            (2, 1, 9, 0),
            (1, 4, 6, 0),
            (1, 1, 20, 0),
            (2, 6, 0, 2),
        )
        for seed, (batch, sequence, past, padding) in enumerate(shapes):
            yield self.inputs(batch, sequence, past, seed + 1, padding)

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        return {
            "input_ids": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "total"},
            "position_ids": {0: "batch", 1: "sequence"},
            "past_key_values": [{0: "batch", 2: "past"}] * (2 * LAYERS),
        }

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs."""
        parts = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
        return (
            ["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{part}" for part in parts],
            ["logits", *(f"present.{part}" for part in parts)],
        )


class Cached(nn.Module):
    """A causal model whose cache goes in and out as a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        pairs = zip(past_key_values[::2], past_key_values[1::2], strict=True)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(list(pairs)),
            use_cache=True,
        )
        layers = out.past_key_values.layers
        return out.logits, *[part for layer in layers for part in (layer.keys, layer.values)]


@dataclass(frozen=True)
class Encoder:
    """A tower or a text encoder: attention of all positions to all.

    Attributes:
        name: of the family.
        config: the class of its configuration.
        model: the class of the encoder, behind its module where transformers does not show it.
        heads: heads and the width of one.
        skips: residual sums that a norm reads.
        input: name of the input: pixels, features of sound or tokens.
        sizes: what else differs from the configuration's defaults.
        attentions: attentions of the whole model.
        recipe: the generic recipe that suits it.
    """

    name: str
    config: str
    model: str
    heads: tuple[int, int]
    skips: int
    input: str = "pixel_values"
    sizes: dict[str, Any] = field(default_factory=dict)
    attentions: int = LAYERS
    recipe: str = "vision"

    @property
    def expected(self) -> dict[str, int]:
        """Fused nodes that the architecture has a place for, by op type."""
        return {
            "MultiHeadAttention": self.attentions,
            "SkipLayerNormalization": self.skips,
        }

    def build(self, attention: str) -> nn.Module:
        """The random model."""
        torch.manual_seed(0)
        config = getattr(tf, self.config)(**self.settings)
        module, _, name = self.model.rpartition(".")
        source = importlib.import_module(f"transformers.models.{module}") if module else tf
        model = getattr(source, name)._from_config(config, attn_implementation=attention)
        return Features(stir(model.eval()), self.input)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the configuration."""
        heads, width = self.heads
        plain: dict[str, Any] = {
            "hidden_size": heads * width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": heads,
        }
        return {k: v for k, v in (plain | self.sizes).items() if k != "shape"}

    def inputs(self, batch: int, length: int, seed: int) -> Inputs:
        """Random inputs; a batch of tokens is padded at the end of the first row."""
        rng = np.random.default_rng(seed)
        if self.input == "input_ids":
            mask = np.ones((batch, length), np.int64)
            mask[0, -(batch > 1) or length :] = 0
            return {
                "input_ids": torch.from_numpy(rng.integers(3, VOCABULARY, (batch, length))),
                "attention_mask": torch.from_numpy(mask),
            }
        size = self.sizes.get("shape", (3, 32, 32))
        array = rng.standard_normal((batch, *size)).astype(np.float32)
        return {self.input: torch.from_numpy(array)}

    def example(self) -> Inputs:
        """Inputs to trace with."""
        return self.inputs(3, 9, 0)

    def cases(self) -> Iterator[Inputs]:
        """Batch 1 and 2 and another length."""
        for seed, (batch, length) in enumerate(((1, 5), (2, 12))):
            yield self.inputs(batch, length, seed + 1)

    @property
    def dynamic(self) -> dict[str, Any]:
        """Names of the dynamic axes."""
        if self.input == "input_ids":
            axes = {0: "batch", 1: "sequence"}
            return {"input_ids": axes, "attention_mask": axes}
        return {self.input: {0: "batch"}}

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs."""
        return list(self.dynamic), ["last_hidden_state"]


class Features(nn.Module):
    """An encoder's last hidden state alone."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        names = (self.name, "attention_mask")[: len(inputs)]
        return self.model(**dict(zip(names, inputs, strict=True))).last_hidden_state


def stir(model: nn.Module) -> nn.Module:
    """Random norms and biases: ones and zeros would hide one that is left out."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


PICTURE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
DECODERS = (
    Decoder("Llama", "LlamaConfig", (4, 2, 64)),
    Decoder("Qwen2", "Qwen2Config", (4, 2, 128), sizes={"head_dim": None}),
    Decoder("Qwen3", "Qwen3Config", (4, 2, 128), norms=4),
    Decoder("Gemma 3", "Gemma3TextConfig", (2, 1, 256), norms=6, gate=False,
            sizes={"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    Decoder("Phi-3", "Phi3Config", (4, 4, 96), sizes={"head_dim": None}),
    Decoder("SmolLM3", "SmolLM3Config", (4, 2, 128), rotations=2,
            sizes={"no_rope_layers": [1, 0], "head_dim": None}),
)  # fmt: skip
ENCODERS = (
    Encoder("SigLIP", "SiglipVisionConfig", "SiglipVisionModel", (4, 64), 2 * LAYERS + 1,
            sizes={**PICTURE, "vision_use_head": False}),
    Encoder("CLIP", "CLIPVisionConfig", "CLIPVisionModel", (4, 64), 2 * LAYERS, sizes=PICTURE),
    Encoder("ViT", "ViTConfig", "ViTModel", (4, 80), 2 * LAYERS + 1, sizes=PICTURE),
    Encoder("BERT", "BertConfig", "BertModel", (4, 64), 2 * LAYERS + 1, "input_ids",
            {"vocab_size": VOCABULARY}, recipe="any"),
    Encoder("Whisper's encoder", "WhisperConfig", "whisper.modeling_whisper.WhisperEncoder", (4, 64), 2 * LAYERS + 1,
            "input_features",
            {"d_model": 256, "encoder_layers": LAYERS, "encoder_attention_heads": 4,
             "encoder_ffn_dim": 128, "decoder_layers": 1, "decoder_attention_heads": 4,
             "max_source_positions": 50,
             "num_mel_bins": 80, "vocab_size": VOCABULARY, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "shape": (80, 100)}, recipe="any"),
)  # fmt: skip
SUBJECTS: tuple[Decoder | Encoder, ...] = (*DECODERS, *ENCODERS)
Make = Callable[[str], nn.Module]
