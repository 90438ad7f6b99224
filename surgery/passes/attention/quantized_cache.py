"""Past keys and values are stored in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

Ranges = Mapping[str, npt.NDArray[np.float32]]
"""Largest absolute numbers [K, D] in a cache, by the name of the graph input of its past."""

LARGEST = 127
"""Largest number that a cached key or value becomes."""
PAST = 3, 4
"""Inputs past_key and past_value of the op; outputs 1 and 2 are what follows them."""
SCALES = 12, 13
"""Inputs k_scale and v_scale of the op."""


@dataclass(frozen=True)
class Cached:
    """The cache of one attention.

    Attributes:
        pasts: past keys and past values, graph inputs `[B, K, P, D]`.
        presents: both after the new tokens, graph outputs `[B, K, P + S, D]`.
        ranges: largest absolute keys and values, `[K, D]` each.
    """

    pasts: tuple[ir.Value, ...]
    presents: tuple[ir.Value, ...]
    ranges: tuple[npt.NDArray[np.float32], ...]


class QuantizedCache(NodePass[Cached]):
    """The cache of past keys and values becomes int8, with one scale for each channel.

    before  GroupQueryAttention(q, k, v, past_k, past_v float32 [B, K, P, D], ...)
    after   the same on int8 caches, with k_scale and v_scale float32 [1, K, 1, D], the ranges over
            127 ; the kernel rounds new keys and values, to nearest, and clips what is outside
    keeps   names and shapes of the cache, and its first and second inputs and outputs
    not     an attention without ranges; a cache that is no graph input and output, or not float32;
            scales are numbers of the graph, so that ranges have to be known beforehand
    why     a cache takes a quarter of the memory: at 8 key heads of 128 and 36 layers, 74 KB a
            token instead of 295 KB
    """

    name = "quantized_cache"
    needs = ("group_query_attention",)
    anchors = ("GroupQueryAttention",)

    def __init__(self, ranges: Ranges, *, expect: int | None = None) -> None:
        """Set the ranges.

        Args:
            ranges: largest absolute number `[K, D]` in each channel of a cache, by the name of its
                graph input; a channel of zeros gets the scale 1.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.ranges = ranges

    def match(self, node: ir.Node, m: Matcher) -> Cached:
        """The cache of an attention, and its ranges."""
        pasts = tuple(node.inputs[i] for i in PAST)
        presents = tuple(node.outputs[i] for i in (1, 2))
        found = []
        for past, present in zip(pasts, presents, strict=True):
            m.check(past is not None and past.is_graph_input(), "a past that is an input", past)
            assert past is not None
            m.check(present.is_graph_output(), "a present that is an output", present.name)
            readers = len(past.uses())
            m.check(readers == 1, "a past that the attention alone reads", readers)
            m.check(past.dtype == ir.DataType.FLOAT, "a cache in float32", past.dtype)
            m.check(past.name in self.ranges, f"ranges of {past.name}", "none")
            ranges = np.asarray(self.ranges[past.name or ""], np.float32)
            shape = past.shape
            inner = None if shape is None else (shape[1], shape[3])
            m.check(inner == ranges.shape, f"ranges of shape {inner}", ranges.shape)
            finite = bool(np.isfinite(ranges).all() and (ranges >= 0).all())
            m.check(finite, "finite ranges of at least 0", "others")
            found.append(ranges)
        return Cached(tuple(p for p in pasts if p is not None), presents, tuple(found))

    def rewrite(self, node: ir.Node, found: Cached, add: Builder) -> None:
        """Change the dtype of the cache and give the node its scales."""
        node.resize_inputs(max(len(node.inputs), SCALES[-1] + 1))
        parts = zip(found.pasts, found.presents, found.ranges, SCALES, strict=True)
        for past, present, ranges, index in parts:
            past.type = present.type = ir.TensorType(ir.DataType.INT8)
            scale = np.where(ranges > 0, ranges / LARGEST, 1).astype(np.float32)
            scale = np.maximum(scale, np.finfo(np.float32).tiny)
            value = add.constant(scale[None, :, None, :], f"{past.name}.scale")
            node.replace_input_with(index, value)
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
