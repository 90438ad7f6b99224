"""RotaryEmbedding of heads, ONNX's own or onnxruntime's, as onnxruntime's of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.layout import Heads, heads_of
from surgery.match.rotary import batched
from surgery.passes.attention.attention_heads import written
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Turned:
    """A rotation.

    Attributes:
        heads: what is rotated, `[B, N, S, D]`, and its rows.
        cos: table `[rows, D/2]`; `sin` alike.
        sin: see `cos`.
        position: row of each token, `[B, S]`, or of the first one, `[1]`.
    """

    heads: Heads
    cos: ir.Value
    sin: ir.Value
    position: ir.Value


class RotaryRows(NodePass[Turned]):
    """A rotation of heads becomes one of rows, as onnxruntime's op takes them.

    before  RotaryEmbedding(x [B, N, S, D], Gather(cos table, p), Gather(sin table, p)) of ONNX, or
            com.microsoft RotaryEmbedding(x [B, N, S, D], p, cos table, sin table)
    after   com.microsoft RotaryEmbedding(rows of x [B, S, N * D], p, cos table, sin table), heads
            split and moved after it
    keeps   the angles and the part of the columns that turns
    not     cosines that are computed, or repeated for other rows than the batch's; factors and
            packed batches of onnxruntime's op
    why     the op has kernels on every provider, and attention then reads rows
    """

    name = "rotary_rows"
    needs = ("shapes", "dims", "fold", "noop", "freq_table")
    anchors = ("RotaryEmbedding",)

    def match(self, node: ir.Node, m: Matcher) -> Turned:
        """The tables, and the rows of what is rotated."""
        x = node.inputs[0]
        assert x is not None
        m.rank(x, 4)
        if node.domain:
            position, cos, sin = node.inputs[1:4]
            plain = (
                node.attributes.get_float("scale", 1.0) == 1.0
                and node.attributes.get_int("is_packed_batching", 0) == 0
            )
            m.check(plain, "neither a factor nor packed batches", sorted(node.attributes))
        else:
            cos, sin, position = (*node.inputs, None)[1:4]
        assert cos is not None and sin is not None
        if position is None:
            first, second = m.producer(cos, "Gather"), m.producer(sin, "Gather")
            axes = [g.attributes.get_int("axis", 0) for g in (first, second)]
            m.check(axes == [0, 0], "rows of a table", axes)
            position = first.inputs[1]
            m.check(second.inputs[1] is position, "the same positions for both", "others")
            cos, sin = first.inputs[0], second.inputs[0]
        assert position is not None and cos is not None and sin is not None
        m.rank(cos, 2)
        m.rank(sin, 2)
        m.rank(position, *((1, 2) if node.domain else (2,)))
        heads = heads_of(x)
        fits = heads is not None and heads.repeats == 1 and heads.factor == 1.0
        m.check(fits and heads.form != "heads", "heads made of rows", heads)  # type: ignore[union-attr]
        assert heads is not None
        return Turned(heads, cos, sin, position)

    def rewrite(self, node: ir.Node, found: Turned, add: Builder) -> None:
        """Turn rows, then split and move the heads."""
        x, rows = node.inputs[0], found.heads.source
        assert x is not None and x.shape is not None
        batch, heads, length, width = x.shape
        assert isinstance(heads, int) and isinstance(width, int)
        shape = (batch, length, heads * width)
        if found.heads.form == "rows":
            flat = add.constant(np.array([0, 0, heads * width], np.int64), f"merge_{heads}_heads")
            rows = add("Reshape", [rows, flat], dtype=x.dtype, shape=shape)
        attributes: dict[str, object] = {"num_heads": heads}
        turned = node.attributes.get_int("rotary_embedding_dim", 0)
        if turned and turned != width:
            attributes["rotary_embedding_dim"] = turned
        if node.attributes.get_int("interleaved", 0):
            attributes["interleaved"] = 1
        first = found.position.shape is not None and len(found.position.shape) == 1
        position = found.position if first else batched(found.position, rows, add)
        inputs = [rows, position, found.cos, found.sin]
        out = add(
            "RotaryEmbedding", inputs, attributes, domain="com.microsoft", dtype=x.dtype,
            shape=shape,
        )  # fmt: skip
        again = Heads(out, "joined", heads, 1, 1.0)
        replace(node.outputs[0], written(x, again, add))
