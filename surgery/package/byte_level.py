"""A byte-level BPE tokenizer, written so that the runtime reads it as one.

Hugging Face takes a tokenizer from tokenizer.json. onnxruntime-genai reads there too, but takes the
kind of BPE from two other places: `tokenizer_class`, and the steps of the decoder. A class of the
Llama family means splitting as Llama does, and a step that replaces U+2581 means SentencePiece, for
which no byte-level vocabulary has the tokens. transformers writes both for a tokenizer that it took
out of a GGUF file; it reads them as byte-level all the same.

    tokenizer_class  LlamaTokenizer                                     -> PreTrainedTokenizerFast
    decoder          Sequence(ByteFallback, Fuse, Replace, ByteLevel)   -> ByteLevel

The steps beside ByteLevel do nothing: no token of bytes holds U+2581 or looks like <0x41>.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GENERIC = "PreTrainedTokenizerFast"
"""The class of a tokenizer that is all in tokenizer.json, for both sides."""
READ = frozenset(
    {
        *("CodeGenTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizer"),
        *("Qwen2Tokenizer", "TokenizersBackend", "WhisperTokenizer"),
    }
)
"""Classes that onnxruntime-genai 0.18 reads as byte-level; each may end in Fast."""
IDLE = frozenset({"ByteFallback", "ByteLevel", "Fuse", "Replace"})
"""Steps of a decoder that leave the text of byte-level tokens to ByteLevel."""


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether model, pre-tokenizer and decoder of a tokenizer.json say byte-level BPE.

    Args:
        tokenizer: its object; parts of any kind.
    """
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    parts = (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
    return kind == "BPE" and all("ByteLevel" in types(tokenizer.get(a), b) for a, b in parts)


def types(part: Any, inner: str) -> Iterator[str]:
    """Types of the steps of a part of tokenizer.json.

    Args:
        part: one step, or a sequence of them.
        inner: the key under which a sequence has its steps.
    """
    if not isinstance(part, dict):
        return
    steps = part.get(inner)
    if isinstance(steps, list):
        for step in steps:
            yield from types(step, inner)
    else:
        yield str(part.get("type"))


def class_for_runtime(name: str) -> str:
    """The class to write for a byte-level tokenizer of a class, which may be ""."""
    return name if name.removesuffix("Fast") in READ else GENERIC


def decoder_for_runtime(tokenizer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The decoder to write for a byte-level tokenizer; None if its own is read as such."""
    decoder = tokenizer["decoder"]
    steps = list(types(decoder, "decoders"))
    if steps == ["ByteLevel"] or not IDLE.issuperset(steps):
        return None
    return next((s for s in decoder["decoders"] if s == {**s, "type": "ByteLevel"}), None)
