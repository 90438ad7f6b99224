"""Attention over a cache of fixed length, which new tokens are written into, becomes one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.fixed_cache import Write, read_writes, written
from surgery.match.heads import flat, merged, split
from surgery.match.layout import Heads, heads_of
from surgery.passes.attention.group_query_attention import alike, check_widths, fuse, lengths
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher

INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class Filled:
    """One attention and the cache that it fills.

    Attributes:
        query: `[B, S, N * D]` or `[B, S, N, D]`.
        key: where the new keys come from; `value` alike.
        value: see `key`.
        keys: the write of the new keys; `values` alike.
        values: see `keys`.
        presents: keys and values after the write, `[B, K, L, D]`.
        padding: the input `[B, L]` whose zeros are hidden keys; None without.
        heads: of the queries.
        scale: of the scores.
        softcap: 0 without.
        end: the result, `[B, S, N * D]`.
    """

    query: ir.Value
    key: Heads
    value: Heads
    keys: Write
    values: Write
    presents: tuple[ir.Value, ir.Value]
    padding: ir.Value | None
    heads: int
    scale: float
    softcap: float
    end: ir.Value


class FixedCache(NodePass[Filled]):
    """Attention over a cache of fixed length, written in place, becomes one node.

    before  past [B, K, L, D] ; Attention(q, Transpose(ScatterND(Transpose(past_k), i, k)), the
            same of values, a mask of all L positions)
    after   GroupQueryAttention(q, k, v, past_k, past_v, sum(mask[:T]) - 1, T) -> out, present_k/v,
            with T = max(i) + 1
    keeps   names of the cache, its length L and the first T positions of it; those behind, which
            no query sees, become zeros ; rows padded on the right, as group_query_attention does
    not     positions that do not follow each other, alike in all rows; a mask other than (causal
            and padding), found by running both; a mask that is a graph input; a cache of unknown
            length; other ops that write ; several rows that get several tokens behind others, which
            onnxruntime refuses on a CPU
    why     scores of T positions are computed instead of L, and onnxruntime may write into one
            buffer in place
    """

    name = "fixed_cache"
    needs = ("attention_heads", "shapes", "dims", "fold")
    anchors = ("Attention",)

    def __init__(self, refuse_left: bool = False, *, expect: int | None = None) -> None:
        """Choose what becomes of batches that are padded on the left.

        Args:
            refuse_left: let onnxruntime raise an error for them; see `GroupQueryAttention`.
            expect: number of sites that the pass must find; None for any number.
        """
        super().__init__(expect=expect)
        self.refuse_left = refuse_left
        self.caches: dict[tuple[ir.Value, ir.Value], ir.Value | str | None] = {}
        self.lengths: dict[tuple[ir.Value, ir.Value | None], tuple[ir.Value, ir.Value]] = {}

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.caches.clear()
        self.lengths.clear()

    def match(self, node: ir.Node, m: Matcher) -> Filled:
        """From the keys and values back to the writes and to the rows that are written."""
        query, key, value, mask = (*node.inputs, None)[:4]
        keys, values = written(key, m), written(value, m)
        assert query is not None and key is not None and value is not None
        one = keys.positions is values.positions
        m.check(one, "keys and values at the same positions", values.positions.name)
        m.check(mask is not None, "a mask", "none")
        assert mask is not None
        own = node.attributes.get_int("is_causal", 0)
        m.check(own == 0, "no causality of its own beside the mask", own)
        q, heads = split(query, m)
        key_rows, value_rows = rows(keys.new, m), rows(values.new, m)
        check_widths((query, key, value), m)
        end = merged(node.outputs[0], m)
        pair = keys.positions, mask
        if pair not in self.caches:
            self.caches[pair] = read_writes(*pair, keys.past, query)
        padding = self.caches[pair]
        m.check(not isinstance(padding, str), "a cache that is filled in order", padding)
        assert not isinstance(padding, str)
        scale = node.attributes.get_float("scale", 0.0)  # 0 means 1 / sqrt(head width) in both ops
        softcap = node.attributes.get_float("softcap", 0.0)
        return Filled(q, key_rows, value_rows, keys, values, (key, value), padding, heads, scale,
                      softcap, end)  # fmt: skip

    def rewrite(self, node: ir.Node, found: Filled, add: Builder) -> None:
        """Add one node, whose outputs take over the names of the cache."""
        pair = found.keys.positions, found.padding
        if pair not in self.lengths:
            self.lengths[pair] = filled(found, self.refuse_left, add)
        inputs = [
            flat(found.query, add),
            *(joined(part, add) for part in (found.key, found.value)),
            *(found.keys.past, found.values.past),
            *self.lengths[pair],
        ]
        attributes: dict[str, object] = {
            "num_heads": found.heads,
            "kv_num_heads": found.key.heads,
            "scale": found.scale,
        }
        if found.softcap:
            attributes["softcap"] = found.softcap
        fuse(inputs, attributes, (found.end, *found.presents), add)


def rows(new: ir.Value, m: Matcher) -> Heads:
    """The rows that new keys or values `[S, B, K, D]` are made of."""
    found = heads_of(new, (2, 0, 1, 3))
    m.check(found is not None, f"{new.name} of known heads and lengths", new.shape)
    assert found is not None
    plain = found.repeats == 1 and found.factor == 1
    m.check(plain, "heads as they are", (found.repeats, found.factor))
    return found


def joined(found: Heads, add: Builder) -> ir.Value:
    """Rows `[B, S, K * D]`."""
    source = found.source
    if found.form == "heads" and source.shape is not None:
        b, k, s, d = source.shape
        perm = {"perm": [0, 2, 1, 3]}
        source = add("Transpose", [source], perm, dtype=source.dtype, shape=(b, s, k, d))
    return flat(source, add)


def filled(found: Filled, refuse_left: bool, add: Builder) -> tuple[ir.Value, ir.Value]:
    """Inputs `seqlens_k`, the last valid position of each row `[B]`, and T, both int32."""
    one = add.constant(np.array([1], np.int64), "axis_1")
    total = add("ReduceMax", [found.keys.positions], {"keepdims": 0}, dtype=INT64, shape=())
    total = add("Add", [total, one], dtype=INT64, shape=(1,))
    if found.padding is not None:
        mask = found.padding
        zero = add.constant(np.array([0], np.int64), "axis_0")
        batch = mask.shape[0] if mask.shape is not None else None
        if mask.dtype == ir.DataType.BOOL:
            mask = add("Cast", [mask], {"to": INT64}, dtype=INT64, shape=mask.shape)
        part = add("Slice", [mask, zero, total, one], dtype=mask.dtype, shape=(batch, None))
        return lengths(part, refuse_left, add)
    return alike(total, found.keys.past, add)
