"""Causal attention over a cache of past keys and values becomes one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.fixed_cache import in_place
from surgery.match.heads import flat, merged, split
from surgery.match.masks import Mask, read_mask
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Grouped:
    """One attention with its cache."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    """New queries, keys and values, `[B, S, heads * head_dim]` or `[B, S, heads, head_dim]`."""
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    mask: Mask
    heads: int
    kv_heads: int
    scale: float
    softcap: float
    end: ir.Value
    """The result, `[B, S, heads * head_dim]`."""


class GroupQueryAttention(NodePass[Grouped]):
    """Attention over past and new keys becomes one node that also appends to the cache.

    before  Attention(q, Concat(past_k, k), Concat(past_v, v), causal and padding mask)
    after   GroupQueryAttention(q, k, v, past_k, past_v, sum(mask) - 1, T) -> out, present_k/v ;
            with local_window_size where the mask has a window, softcap where the op has one ;
            P + S of the shapes in place of the sum where no input hides a key
    keeps   names of the cache; past and present may share one buffer longer than T ; rows padded
            on the right: rows padded on the left get other values, without a warning, unless
            `refuse_left` makes onnxruntime raise an error for them
    not     a mask other than (causal, within a window, and attention_mask), found by running it;
            a past that is no graph input; causality of the op itself beside the mask; head widths
            that are no multiples of 8, values of another width than keys: onnxruntime refuses both
    why     no mask of S x T is built, no cache is copied, keys and values are never repeated
    upstream microsoft/onnxscript#2424
    """

    name = "group_query_attention"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Attention",)

    def __init__(self, refuse_left: bool = False, *, expect: int | None = None) -> None:
        """Choose what becomes of batches that are padded on the left.

        Args:
            refuse_left: let a row whose first token is hidden have a length that onnxruntime
                refuses on a CPU; for graphs whose callers may pad either side.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.refuse_left = refuse_left
        self.masks: dict[ir.Value, Mask | str] = {}
        self.lengths: dict[ir.Value | None, tuple[ir.Value, ir.Value]] = {}

    def match(self, node: ir.Node, m: Matcher) -> Grouped:
        """From queries, keys and values back to the rows that their heads were split from."""
        query, key, value, mask = (*node.inputs, None)[:4]
        past_key, new_key = concatenated(key, m)
        past_value, new_value = concatenated(value, m)
        assert query is not None and key is not None and value is not None
        q, heads = split(query, m)
        k, kv_heads = split(new_key, m)
        v, _ = split(new_value, m)
        check_widths((query, key, value), m)
        softcap = node.attributes.get_float("softcap", 0.0)
        own = node.attributes.get_int("is_causal", 0)
        m.check(own == 0, "no causality of its own beside the mask", own)
        scale = node.attributes.get_float("scale", 0.0)  # 0 means 1 / sqrt(head width) in both ops
        end = merged(node.outputs[0], m)
        m.check(mask is not None, "a mask", "none")
        assert mask is not None
        known = self.mask(mask, past_key, query)
        m.check(not isinstance(known, str), "a causal and padding mask", known)
        assert isinstance(known, Mask)
        return Grouped(
            *(q, k, v, past_key, past_value, key, value, known),
            *(heads, kv_heads, scale, softcap, end),
        )

    def mask(self, mask: ir.Value, past: ir.Value, query: ir.Value) -> Mask | str:
        """`read_mask`, cached."""
        if mask not in self.masks:
            self.masks[mask] = read_mask(mask, past, query)
        return self.masks[mask]

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.masks.clear()
        self.lengths.clear()

    def rewrite(self, node: ir.Node, found: Grouped, add: Builder) -> None:
        """Add one node, whose outputs take over the names of the cache."""
        padding = found.mask.padding
        if padding not in self.lengths:
            self.lengths[padding] = (
                whole_lengths(found, add)
                if padding is None
                else lengths(padding, self.refuse_left, add)
            )
        inputs = [
            *(flat(x, add) for x in (found.query, found.key, found.value)),
            *(found.past_key, found.past_value),
            *self.lengths[padding],
        ]
        attributes: dict[str, object] = {
            "num_heads": found.heads,
            "kv_num_heads": found.kv_heads,
            "scale": found.scale,
        }
        if found.softcap:
            attributes["softcap"] = found.softcap
        if found.mask.window is not None:
            attributes["local_window_size"] = found.mask.window
        fuse(inputs, attributes, (found.end, found.present_key, found.present_value), add)


def check_widths(heads: Sequence[ir.Value], m: Matcher) -> None:
    """Queries, keys and values must have one width that onnxruntime's op takes."""
    widths = [x.shape[-1] if x.shape is not None else None for x in heads]
    m.check(len(set(map(str, widths))) == 1, "values as wide as keys", widths)
    even = isinstance(widths[0], int) and widths[0] % 8 == 0
    m.check(even, "a head width that is a multiple of 8", widths[0])


def fuse(
    inputs: Sequence[ir.Value],
    attributes: dict[str, object],
    olds: Sequence[ir.Value],
    add: Builder,
) -> None:
    """Add the node; its outputs take the places of a result and of the two presents, in order."""
    fused = add.node("GroupQueryAttention", inputs, attributes, domain="com.microsoft", outputs=3)
    for new, old in zip(fused.outputs, olds, strict=True):
        new.type, new.shape = ir.TensorType(old.dtype or ir.DataType.FLOAT), old.shape
        replace(old, new)


def concatenated(value: ir.Value | None, m: Matcher) -> tuple[ir.Value, ir.Value]:
    """Past and new parts of keys or values, `[B, K, P, D]` and `[B, K, S, D]`."""
    place = in_place(value)
    if place is not None:  # a condition that held, so that this is a near-miss
        m.rank(place[0], 4)
    op = "Concat" if place is None else f"{place[1]}, which writes into {place[0].name}"
    m.check(place is None, "past and new keys joined by Concat", op)
    node = m.producer(value, "Concat")
    axis = node.attributes["axis"].as_int()
    m.check(axis in (2, -2), "past and new joined along axis 2", axis)
    m.check(len(node.inputs) == 2, "past and new, nothing else", len(node.inputs))
    past, new = node.inputs
    assert past is not None and new is not None
    m.check(past.is_graph_input(), "a past that is a graph input", past.name)
    return past, new


def lengths(mask: ir.Value, refuse_left: bool, add: Builder) -> tuple[ir.Value, ir.Value]:
    """Inputs `seqlens_k`, the last valid position of each row `[B]`, and T, both int32.

    With `refuse_left` a row whose first valid position is f > 0 gets a length above f * T.
    """
    one, axis = np.array(1, np.int64), np.array([1], np.int64)
    batch = mask.shape[0] if mask.shape is not None else None
    count = add(
        "ReduceSum", [mask, add.constant(axis, "axis_1")], {"keepdims": 0}, dtype=mask.dtype,
        shape=(batch,),
    )  # fmt: skip
    last = add("Sub", [count, add.constant(one, "one")], like=count)
    to = {"to": ir.DataType.INT32}
    if refuse_left:
        of_rows = {"axis": 1, "keepdims": 0}
        first = add("ArgMax", [mask], of_rows, dtype=ir.DataType.INT64, shape=(batch,))
        axis_1 = {"start": 1, "end": 2}
        length = add("Shape", [mask], axis_1, dtype=ir.DataType.INT64, shape=(1,))
        last = add("Add", [last, add("Mul", [first, length], like=first)], like=last)
    last = add("Cast", [last], to, dtype=ir.DataType.INT32, shape=(batch,))
    total = add("Shape", [mask], {"start": 1, "end": 2}, dtype=ir.DataType.INT64, shape=(1,))
    total = add("Squeeze", [total], dtype=ir.DataType.INT64, shape=())
    return last, add("Cast", [total], to, dtype=ir.DataType.INT32, shape=())


def whole_lengths(found: Grouped, add: Builder) -> tuple[ir.Value, ir.Value]:
    """The same where no key is hidden: T is the length of the past and of the new tokens."""

    def size(value: ir.Value, axis: int) -> ir.Value:
        part = {"start": axis, "end": axis + 1}
        return add("Shape", [value], part, dtype=ir.DataType.INT64, shape=(1,))

    past = size(found.past_key, 2)
    total = add("Add", [past, size(found.query, 1)], like=past)
    return alike(total, found.query, add)


def alike(total: ir.Value, of: ir.Value, add: Builder) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k` and T, both int32, where every row has T valid positions.

    Args:
        total: T, int64 `[1]`.
        of: anything with the batch as its first axis.
        add: adds the nodes.
    """
    int32 = ir.DataType.INT32
    total = add("Cast", [total], {"to": int32}, dtype=int32, shape=(1,))
    axis = {"start": 0, "end": 1}
    batch = add("Shape", [of], axis, dtype=ir.DataType.INT64, shape=(1,))
    last = add("Sub", [total, add.constant(np.array(1, np.int32), "one_int32")], like=total)
    rows = of.shape[0] if of.shape is not None else None
    last = add("Expand", [last, batch], dtype=int32, shape=(rows,))
    axes = add.constant(np.array([0], np.int64), "axis_0")
    return last, add("Squeeze", [total, axes], dtype=int32, shape=())
