"""Attention written out, for providers without the op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.masks import additive_mask
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


@dataclass(frozen=True)
class Whole:
    """One attention, `[B, N, S, D]`.

    Attributes:
        query: `[B, N, S, D]`.
        key: `[B, K, T, D]`, N a multiple of K; `value` alike.
        value: see `key`.
        mask: bool, or float32 to be added; None without.
        heads: N and K.
        scale: of the scores.
        softcap: 0 without.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    heads: tuple[int, int]
    scale: float
    softcap: float


class PlainAttention(NodePass[Whole]):
    """Attention that no other pass replaced becomes products and a softmax.

    before  Attention(q, k, v, mask)
    after   MatMul(Softmax(scale * MatMul(q, Transpose(k)) + mask), v), keys and values repeated
            over their heads, the scores capped by c * Tanh(scores / c), where the op did so
    keeps   values up to the order of sums; a query that a bool mask leaves no key gets the mean
            of all values instead of zeros
    not     an op with a cache, causality or a second output of its own
    why     the op needs opset 23; a provider with kernels for older opsets alone would not run it
    """

    name = "plain_attention"
    anchors = ("Attention",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.biases: dict[ir.Value, ir.Value] = {}

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.biases.clear()

    def match(self, node: ir.Node, m: Matcher) -> Whole:
        """Known numbers of heads, and none of the op's other features."""
        query, key, value, mask, *past = (*node.inputs, None, None)[:6]
        assert query is not None and key is not None and value is not None
        m.check(not any(past), "no cache", "past keys")
        m.check(not any(v.uses() for v in node.outputs[1:]), "one output", "more in use")
        causal = node.attributes.get_int("is_causal", 0)
        m.check(causal == 0, "no causality of its own", causal)
        for x in (query, key, value):
            m.rank(x, 4)
        assert query.shape is not None and key.shape is not None
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
        known = isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(width, int)
        m.check(known, "known heads and head width", (query.shape, key.shape))
        assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(width, int)
        m.check(mask is None or mask.dtype in (BOOL, FLOAT), "a mask of bool or float32", mask)
        scale = node.attributes.get_float("scale", 0.0) or float(width) ** -0.5
        softcap = node.attributes.get_float("softcap", 0.0)
        return Whole(query, key, value, mask, (heads, kv_heads), scale, softcap)

    def rewrite(self, node: ir.Node, found: Whole, add: Builder) -> None:
        """Add the scores, their softmax and the product with the values."""
        query, (heads, kv_heads) = found.query, found.heads
        key, value = found.key, found.value
        if heads != kv_heads:
            key, value = (repeated(x, heads, kv_heads, add) for x in (key, value))
        assert query.shape is not None and key.shape is not None
        (b, _, s, width), length = query.shape, key.shape[2]
        turned = add("Transpose", [key], {"perm": [0, 1, 3, 2]}, dtype=key.dtype,
                     shape=(b, heads, width, length))  # fmt: skip
        shape = (b, heads, s, length)

        def op(name: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
            return add(name, inputs, attributes, dtype=query.dtype, shape=shape)

        def number(x: float, name: str) -> ir.Value:
            return add.constant(np.array(x, np.float32), name)

        scores = op("MatMul", [query, turned])
        scores = op("Mul", [scores, number(found.scale, "scale_of_scores")])
        if found.softcap:
            cap = number(found.softcap, "cap_of_scores")
            scores = op("Mul", [op("Tanh", [op("Div", [scores, cap])]), cap])
        if found.mask is not None:
            if found.mask not in self.biases:
                self.biases[found.mask] = additive_mask(found.mask, add)
            scores = op("Add", [scores, self.biases[found.mask]])
        weights = op("Softmax", [scores], axis=-1)
        replace(node.outputs[0], add("MatMul", [weights, value], like=node.outputs[0]))


def repeated(x: ir.Value, heads: int, kv_heads: int, add: Builder) -> ir.Value:
    """Keys or values `[B, K, T, D]` for every query head, `[B, N, T, D]`."""
    assert x.shape is not None
    b, _, t, d = x.shape
    times = heads // kv_heads
    axis = add.constant(np.array([2], np.int64), "axis_2")
    lifted = add("Unsqueeze", [x, axis], dtype=x.dtype, shape=(b, kv_heads, 1, t, d))
    spread = add.constant(np.array([1, 1, times, 1, 1], np.int64), f"repeat_{times}")
    wide = add("Expand", [lifted, spread], dtype=x.dtype, shape=(b, kv_heads, times, t, d))
    flat = add.constant(np.array([0, heads, -1, d], np.int64), f"heads_{heads}")
    return add("Reshape", [wide, flat], dtype=x.dtype, shape=(b, heads, t, d))
