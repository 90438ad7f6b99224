"""Attention without a mask as the runtime's own op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.contract import Builder, Matcher, NodePass, constant, replace
from surgery.heads import merged, split


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
    keeps   values up to the order of sums; a constant mask that hides nothing is left out
    not     a mask that hides something; fewer key than query heads
    why     four copies of activations go, and scores are computed in blocks that fit the cache
    """

    name = "mha"
    anchors = ("Attention",)

    def match(self, node: ir.Node, m: Matcher) -> Full:
        """Queries, keys and values back to where their heads were split off."""
        query, key, value, mask, *past = (*node.inputs, None, None)
        m.check(not any(past), "no cache", "past keys")
        numbers = constant(mask)
        hides = mask is not None and (numbers is None or not harmless(numbers))
        m.check(not hides, "no mask", mask.name if mask is not None else "")
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


def harmless(numbers: np.ndarray) -> bool:
    """Whether a constant mask hides nothing: all true, or all zeros to be added."""
    return bool(numbers.all()) if numbers.dtype == bool else not numbers.any()
