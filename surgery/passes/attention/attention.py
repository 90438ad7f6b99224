"""Attention written out in separate nodes becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.scores import capped, factored, guarded, keys, masked, repeated, scaled
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Written:
    """One attention that is written out.

    Attributes:
        query: `[B, N, S, D]`.
        key: `[B, K, T, D]`, N a multiple of K, after `perm`.
        perm: order of axes in which the keys still have to be brought; empty for none.
        value: `[B, K, T, D]`.
        mask: bool, or float to be added; None without.
        scale: of the scores.
        softcap: 0 without.
        end: the result, `[B, N, S, D]`.
    """

    query: ir.Value
    key: ir.Value
    perm: tuple[int, ...]
    value: ir.Value
    mask: ir.Value | None
    scale: float
    softcap: float
    end: ir.Value


class Attention(NodePass[Written]):
    """Attention written out in separate nodes becomes one node.

    before  MatMul(Softmax(scale * MatMul(q, Transpose(k)) + mask), v) ; keys and values may be
            repeated over their heads, scores may be capped by c * Tanh(scores / c), rows of NaN
            may become zeros
    after   Attention(q, k, v, mask)
    keeps   values up to the order of sums ; of a mask Where(bool, 0, lowest) the bool, so that
            later passes can read it: a query that such a mask leaves no key then gets zeros
            instead of an average of the hidden values
    not     opset before 23; a cap together with a float mask; scores that another node reads
    why     the form that group_query_attention, multi_head_attention and packed_attention
            match
    """

    name = "attention"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Softmax",)

    def __init__(self, *, expect: int | None = None) -> None:
        """Set what is expected; see `Pass`."""
        super().__init__(expect=expect)
        self.masks: dict[ir.Value, ir.Value] = {}

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.masks.clear()

    def match(self, node: ir.Node, m: Matcher) -> Written:
        """From the softmax up to queries and keys, and down to the product with the values."""
        assert isinstance(node.graph, ir.Graph)
        opset = node.graph.opset_imports.get("", 0)
        scores = node.inputs[0]
        assert scores is not None
        m.check(node.attributes.get_int("axis", -1) in (-1, 3), "a softmax over keys", node)
        m.rank(scores, 4)
        weights = guarded(node.outputs[0], m)
        out = m.user(weights, "MatMul")
        m.check(out.inputs[0] is weights, "weights times values", "values times weights")
        mask, scores = masked(scores, m)
        cap, scores = capped(scores, m)
        scale, product = scaled(scores, m)
        query, turned = product.inputs
        assert query is not None and out.inputs[1] is not None
        factor, query = factored(query)
        other_factor, turned = factored(turned)
        key, perm = keys(turned, m)
        whole = key, out.inputs[1]
        key, value = whole if perm else map(repeated, whole)
        axis = 2 if perm == (0, 2, 1, 3) else 1
        if key.shape is None or value.shape is None or key.shape[axis] != value.shape[1]:
            key, value = whole  # without the repetition their heads differ: only one was repeated
        m.rank(query, 4)
        m.check(opset >= 23, "opset 23, which has Attention", opset)
        m.check(cap == 0.0 or mask is None or mask.dtype == ir.DataType.BOOL,
                "a mask of bool beside a cap", mask)  # fmt: skip
        guard = weights is not node.outputs[0]
        fits = not guard or mask is None or mask.dtype == ir.DataType.BOOL
        m.check(fits, "a mask of bool beside a guard against NaN", mask)
        scale *= factor * other_factor
        return Written(query, key, perm, value, mask, scale, cap, out.outputs[0])

    def rewrite(self, node: ir.Node, found: Written, add: Builder) -> None:
        """Put one node in place of the product with the values."""
        end = found.end.producer()
        assert end is not None
        add.before = end
        key = found.key
        if found.perm:
            shape = [key.shape[i] if key.shape is not None else None for i in found.perm]
            perm = {"perm": list(found.perm)}
            key = add("Transpose", [key], perm, dtype=key.dtype, shape=shape)
        inputs = [found.query, key, found.value]
        if found.mask is not None:
            if found.mask not in self.masks:
                self.masks[found.mask] = spread(found.mask, found.query, add)
            inputs.append(self.masks[found.mask])
        attributes: dict[str, object] = {"scale": found.scale, "is_causal": 0}
        if found.softcap:
            attributes["softcap"] = found.softcap
        replace(found.end, add("Attention", inputs, attributes, like=found.end))


def spread(mask: ir.Value, query: ir.Value, add: Builder) -> ir.Value:
    """A mask with a row for each query; onnxruntime's `Attention` does not broadcast that axis."""
    shape, rows = mask.shape, query.shape[2] if query.shape is not None else None
    if shape is None or len(shape) < 2 or shape[-2] != 1 or rows == 1:
        return mask
    one = add.constant(np.array([1], np.int64), "one")
    length = add("Shape", [query], {"start": 2, "end": 3}, dtype=ir.DataType.INT64, shape=[1])
    wide = add("Concat", [length, one], {"axis": 0}, dtype=ir.DataType.INT64, shape=[2])
    dims = (*shape[:-2], rows, shape[-1])
    return add("Expand", [mask, wide], dtype=mask.dtype, shape=dims)
