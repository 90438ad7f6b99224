"""Attention as onnxruntime's own op, which reads rows as the projections write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.heads import flat, merged, split
from surgery.match.masks import additive_mask, read_padding
from surgery.match.probe import Leaks, Region
from surgery.match.shapes import same_dim
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher, constant

FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


@dataclass(frozen=True)
class Full:
    """One attention without a cache."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    """`[B, S, N * D]` or `[B, S, N, D]`."""
    mask: ir.Value | None
    """`[B, N, S, T]`, or 1 in place of B or N; None where it hides nothing."""
    padding: ir.Value | None
    """Input `[B, T]` whose zeros are the keys that the mask hides; None for another mask."""
    heads: int
    scale: float
    end: ir.Value
    """The result, `[B, S, N * D]`."""


class MultiHeadAttention(NodePass[Full]):
    """Attention reads rows as the projections write them, without moving heads to the front.

    before  Attention(q, k, v [B, N, S, D], each Transpose(Reshape(x)), mask) ; Transpose ; Reshape
    after   MultiHeadAttention(x_q, x_k, x_v [B, S, N * D], mask as numbers to be added) ; a mask
            that hides the zeros of an input [B, S] becomes that input, which running it shows
    keeps   values up to the order of sums ; a mask that hides nothing is left out if it is
            constant or computed from shapes alone, which running it shows ; a query that a bool
            mask leaves no key gets the mean of all values instead of zeros
    not     a cache; causality or a cap of the op; fewer key than query heads; a mask without a
            row for each query and a column for each key
    why     saves four copies of activations; scores are computed in blocks that fit the CPU cache
    """

    name = "multi_head_attention"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Attention",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.masks: dict[ir.Value, str | None] = {}
        self.paddings: dict[ir.Value, ir.Value | None] = {}
        self.biases: dict[ir.Value, ir.Value] = {}

    def mask(self, mask: ir.Value) -> str | None:
        """`read_mask`, cached."""
        if mask not in self.masks:
            self.masks[mask] = read_mask(mask)
        return self.masks[mask]

    def padding(self, mask: ir.Value) -> ir.Value | None:
        """`read_padding`, cached; None for another mask."""
        if mask not in self.paddings:
            found = read_padding(mask)
            self.paddings[mask] = None if isinstance(found, str) else found
        return self.paddings[mask]

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.masks.clear()
        self.paddings.clear()
        self.biases.clear()

    def match(self, node: ir.Node, m: Matcher) -> Full:
        """From queries, keys and values back to the rows that their heads were split from."""
        query, key, value, mask, *past = (*node.inputs, None, None)
        m.check(not any(past), "no cache", "past keys")
        if mask is not None and self.mask(mask) is None:
            mask = None
        padding = self.padding(mask) if mask is not None else None
        if mask is not None and padding is None:
            fits(mask, query, key, m)
        own = node.attributes.get_int("is_causal", 0), node.attributes.get_float("softcap", 0.0)
        m.check(own == (0, 0.0), "attention that is neither causal nor capped", own)
        (q, heads), (k, kv_heads), (v, _) = (split(x, m) for x in (query, key, value))
        m.check(heads == kv_heads, f"{heads} key heads", kv_heads)
        scale = node.attributes.get_float("scale", 0.0)  # 0 means 1 / sqrt(head width) in both ops
        return Full(q, k, v, mask, padding, heads, scale, merged(node.outputs[0], m))

    def rewrite(self, node: ir.Node, found: Full, add: Builder) -> None:
        """One node in place of nine."""
        attributes = {"num_heads": found.heads, "scale": found.scale}
        inputs: list[ir.Value | None] = [
            flat(x, add) for x in (found.query, found.key, found.value)
        ]
        if found.padding is not None:
            if found.padding not in self.biases:
                whole = {"to": ir.DataType.INT32}
                narrow = add("Cast", [found.padding], whole, dtype=ir.DataType.INT32,
                             shape=found.padding.shape)  # fmt: skip
                self.biases[found.padding] = narrow
            inputs += [None, self.biases[found.padding]]
        elif found.mask is not None:
            if found.mask not in self.biases:
                self.biases[found.mask] = additive_mask(found.mask, add)
            inputs += [None, None, self.biases[found.mask]]
        out = add("MultiHeadAttention", inputs, attributes, domain="com.microsoft", like=found.end)
        replace(found.end, out)


def fits(mask: ir.Value, query: ir.Value | None, key: ir.Value | None, m: Matcher) -> None:
    """Check that the op takes a mask: a row for each query, a column for each key."""
    assert query is not None and key is not None
    m.check(mask.dtype in (BOOL, FLOAT), "a mask of bool or float32", mask.dtype)
    m.rank(mask, 4)
    known = mask.shape is not None and query.shape is not None and key.shape is not None
    m.check(known, "known shapes", (query.shape, key.shape))
    assert mask.shape is not None and query.shape is not None and key.shape is not None
    wanted = [query.shape[0], query.shape[1], query.shape[2], key.shape[2]]
    alike = [
        same_dim(d, w) or (d == 1 and i < 2) for i, (d, w) in enumerate(zip(mask.shape, wanted))
    ]
    what = f"a mask that hides nothing, or one of {ir.Shape(wanted)}"
    m.check(all(alike), what, mask.shape)


def read_mask(mask: ir.Value) -> str | None:
    """Why a mask is needed, or None if it hides nothing.

    A mask of fixed lengths that depends on shapes alone is run at a few batch sizes.
    """
    numbers = constant(mask)
    if numbers is not None:
        return None if harmless(numbers) else "a constant mask"
    producer, shape = mask.producer(), mask.shape
    if producer is None or not isinstance(producer.graph, ir.Graph) or shape is None:
        return "a mask that is a graph input or has no known shape"
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
        try:
            numbers = region(feeds)
        except Leaks as e:
            return f"a mask that does not run at batch {size}: {e}"
        if not harmless(numbers):
            return f"a mask that hides something at batch {size}"
    return None


def harmless(numbers: np.ndarray) -> bool:
    """Whether a constant mask hides nothing: all true, or all zeros to be added."""
    return bool(numbers.all()) if numbers.dtype == bool else not numbers.any()
