"""Attention without a mask as the runtime's own op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, constant, replace
from surgery.heads import merged, split
from surgery.probe import Leaks, Region


@dataclass(frozen=True)
class Full:
    """One attention of every position to every other."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    """`[B, S, N * D]`."""
    heads: int
    scale: float
    end: ir.Value
    """The result, `[B, S, N * D]`."""


class Mha(NodePass[Full]):
    """Attention without a mask takes its rows as they come out of the projections.

    before  Attention(q, k, v [B, N, S, D], each Transpose(Reshape(x))) ; Transpose ; Reshape
    after   MultiHeadAttention(x_q, x_k, x_v [B, S, N * D])
    keeps   values up to the order of sums; a mask that hides nothing is left out: a constant, or
            one of shapes alone, found by running it
    not     a mask that hides something; fewer key than query heads
    why     four copies of activations go, and scores are computed in blocks that fit the cache
    """

    name = "mha"
    anchors = ("Attention",)

    def __init__(self) -> None:
        """Start without knowledge of any mask."""
        super().__init__()
        self.masks: dict[ir.Value, str | None] = {}

    def mask(self, mask: ir.Value) -> str | None:
        """What a mask hides, None for nothing."""
        if mask not in self.masks:
            self.masks[mask] = read_mask(mask)
        return self.masks[mask]

    def apply(self, model: ir.Model) -> int:
        """Rewrite, then forget what was learnt of this graph."""
        try:
            return super().apply(model)
        finally:
            self.masks.clear()

    def match(self, node: ir.Node, m: Matcher) -> Full:
        """Queries, keys and values back to where their heads were split off."""
        query, key, value, mask, *past = (*node.inputs, None, None)
        m.check(not any(past), "no cache", "past keys")
        reason = self.mask(mask) if mask is not None else None
        m.check(reason is None, "a mask that hides nothing", reason)
        own = node.attributes.get_int("is_causal", 0), node.attributes.get_float("softcap", 0.0)
        m.check(own == (0, 0.0), "attention that is neither causal nor capped", own)
        (q, heads), (k, kv_heads), (v, _) = (split(x, m) for x in (query, key, value))
        m.check(heads == kv_heads, f"{heads} key heads", kv_heads)
        scale = node.attributes.get_float("scale", 0.0)  # 0 is the root of the width in both ops
        return Full(q, k, v, heads, scale, merged(node.outputs[0], m))

    def rewrite(self, node: ir.Node, found: Full, add: Builder) -> None:
        """One node in place of nine."""
        attributes = {"num_heads": found.heads, "scale": found.scale}
        inputs = [found.query, found.key, found.value]
        out = add("MultiHeadAttention", inputs, attributes, domain="com.microsoft", like=found.end)
        replace(found.end, out)


def read_mask(mask: ir.Value) -> str | None:
    """Why a mask is needed, or None: it is constant, or follows from the batch size alone.

    A mask between fixed positions that reads nothing but shapes is run at a few batch sizes.
    """
    numbers = constant(mask)
    if numbers is not None:
        return None if harmless(numbers) else "a constant mask"
    producer, shape = mask.producer(), mask.shape
    if producer is None or not isinstance(producer.graph, ir.Graph) or shape is None:
        return "a mask given from outside"
    if not all(isinstance(d, int) for d in shape[-2:]):
        return f"a mask of {shape}"
    try:
        region = Region(producer.graph, producer.graph.inputs, mask)
    except Leaks as e:
        return f"a mask that reads more than the graph's inputs: {e}"
    if region.numbers:
        return "a mask that reads numbers, not shapes alone"
    for size in (1, 2, 5):
        feeds = {
            v.name or "": np.zeros([d if isinstance(d, int) else size for d in v.shape or ()],
                                   v.dtype.numpy() if v.dtype else None)
            for v in region.inputs
        }  # fmt: skip
        if not harmless(region(feeds)):
            return f"a mask that hides something at batch {size}"
    return None


def harmless(numbers: np.ndarray) -> bool:
    """Whether a constant mask hides nothing: all true, or all zeros to be added."""
    return bool(numbers.all()) if numbers.dtype == bool else not numbers.any()
