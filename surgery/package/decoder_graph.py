"""What onnxruntime-genai must know of a decoder that takes tokens, read from its graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.caches import Cache, caches, numbered

TOKENS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
"""Names of the inputs and outputs that every decoder has besides its caches."""


class Unfit(Exception):
    """A graph that the runtime cannot drive, or a model that it cannot be told of: the reason."""


@dataclass(frozen=True)
class DecoderGraph:
    """A decoder with a cache.

    Attributes:
        layers: decoder layers with a cache.
        kv_heads: key heads of the first layer.
        width: width of a head there.
        vocabulary: logits of a token.
        positions: whether it takes `position_ids`.
        past: names of past keys and past values, with %d for the layer.
        present: names of present keys and present values.
        shared: whether past and present may be one buffer.
    """

    layers: int
    kv_heads: int
    width: int
    vocabulary: int
    positions: bool
    past: tuple[str, str]
    present: tuple[str, str]
    shared: bool

    @classmethod
    def read(cls, model: ir.Model) -> DecoderGraph:
        """Read a finished graph.

        Raises:
            Unfit: the runtime has no way to feed an input or to read an output of it.
        """
        inputs = {value.name or "": value for value in model.graph.inputs}
        keys, values = caches(model)
        check_tokens(inputs)
        if not keys or len(keys) != len(values):
            raise Unfit("no cache: no outputs that append to inputs of rank 4")
        held = {cache.past.name for cache in (*keys, *values)}
        for name in inputs.keys() - held - {TOKENS, MASK, POSITIONS}:
            raise Unfit(f"the runtime feeds no input {name}")
        key, present_key = names(keys)
        value, present_value = names(values)
        kv_heads, width = sizes(keys[0])
        return cls(
            layers=len(keys),
            kv_heads=kv_heads,
            width=width,
            vocabulary=vocabulary(model),
            positions=POSITIONS in inputs,
            past=(key, value),
            present=(present_key, present_value),
            shared=all(cache.grouped for cache in (*keys, *values)),
        )

    @property
    def inputs(self) -> dict[str, str]:
        """The object `inputs` of genai_config.json."""
        positions = {POSITIONS: POSITIONS} if self.positions else {}
        key, value = self.past
        own = {TOKENS: TOKENS, MASK: MASK, **positions}
        return own | {"past_key_names": key, "past_value_names": value}

    @property
    def outputs(self) -> dict[str, str]:
        """The object `outputs` of genai_config.json."""
        key, value = self.present
        return {LOGITS: LOGITS, "present_key_names": key, "present_value_names": value}


def check_tokens(inputs: dict[str, ir.Value]) -> None:
    """Raise `Unfit` unless tokens and mask are inputs of any batch and length."""
    if TOKENS not in inputs:
        raise Unfit(f"no input {TOKENS}")
    if MASK not in inputs:
        raise Unfit(f"no input {MASK}")
    for name in (TOKENS, MASK, POSITIONS):
        shape = inputs[name].shape if name in inputs else None
        if shape is None:
            continue
        if len(shape) != 2:
            raise Unfit(f"{name} has rank {len(shape)}, the runtime feeds rank 2")
        if isinstance(shape[1], int):
            raise Unfit(f"{name} has the static length {shape[1]}")


def names(parts: list[Cache]) -> tuple[str, str]:
    """Names of pasts and presents, with %d for the layer."""
    found = []
    for ports in ([c.past for c in parts], [c.present for c in parts]):
        every = [port.name or "" for port in ports]
        name = numbered(every)
        if name is None:
            raise Unfit(f"caches not numbered by layer: {', '.join(every[:2])}")
        found.append(name)
    return found[0], found[1]


def sizes(cache: Cache) -> tuple[int, int]:
    """Heads and their width."""
    assert cache.past.shape is not None
    _, heads, past, width = cache.past.shape
    if isinstance(past, int):
        raise Unfit(f"{cache.past.name} has the static length {past}")
    if not isinstance(heads, int) or not isinstance(width, int):
        raise Unfit(f"{cache.past.name} has no fixed number of heads, or no fixed width")
    return heads, width


def vocabulary(model: ir.Model) -> int:
    """Numbers of the last axis of the logits."""
    found = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    if found is None:
        raise Unfit(f"no output {LOGITS}")
    size = found.shape[-1] if found.shape is not None else None
    if not isinstance(size, int):
        raise Unfit(f"{LOGITS} has no fixed number of tokens")
    return size
