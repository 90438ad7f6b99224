"""Multimodal rotary embedding of queries and keys becomes one node each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.position_axes import Axes, axes_by_frequency, read_pick
from surgery.match.rotary import Rotation, rotate, rotation, unsqueezed
from surgery.rewrite.builder import Builder
from surgery.rewrite.contract import NodePass
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Mrotation:
    """A rotation whose angles come from three position axes."""

    rotation: Rotation
    position: ir.Value
    cos: ir.Value
    sin: ir.Value
    axes: Axes


class MultimodalRotary(NodePass[Mrotation]):
    """Multimodal rotary embedding becomes one node for queries and one for keys.

    before  cos, sin = pick(Gather(table, position_ids [3, B, S])) ; x * cos + rotate_half(x) * sin
            where pick takes the angle of each frequency from one axis: time, height or width
    after   MRotaryEmbedding(x, position_ids, cos table, sin table), or where a provider lacks it
            RotaryEmbedding(x, row of each token, picked cos, picked sin), picked with two Where
    keeps   values for any positions (t, h, w) ; running pick on distinct numbers shows the axis of
            each frequency ; halves or pairs, of the whole head or of its first columns
    not     one position axis (plain rotary); a pick that is neither interleaved nor sectioned
    why     74 nodes in front and 14 in each layer run for every token; 2 in each layer remain
    """

    name = "multimodal_rotary"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Concat",)

    def __init__(self, fused: bool = True, *, expect: int | None = None) -> None:
        """Choose the op.

        Args:
            fused: use `MRotaryEmbedding`; False for providers without it.
        """
        super().__init__(expect=expect)
        self.fused = fused
        self.picks: dict[tuple[ir.Value, bool], tuple[ir.Node, Axes] | str] = {}
        self.tokens: Tokens | None = None

    def match(self, node: ir.Node, m: Matcher) -> Mrotation:
        """A rotation whose cosines and sines are picked from one table each."""
        found = rotation(node, m)
        tables = []
        for angles in (found.cos, found.sin):
            picked = unsqueezed(angles, m)
            known = self.pick(picked, found.interleaved)
            m.check(not isinstance(known, str), "angles picked by three position axes", known)
            assert not isinstance(known, str)
            tables.append(known)
        (cos, axes), (sin, sin_axes) = tables
        m.check(axes == sin_axes, "the same pick for cosines and sines", sin_axes)
        position = cos.inputs[1]
        assert position is not None and cos.inputs[0] is not None and sin.inputs[0] is not None
        m.check(sin.inputs[1] is position, "the same positions for both", sin.inputs[1])
        m.rank(found.x, 4)
        return Mrotation(found, position, cos.inputs[0], sin.inputs[0], axes)

    def pick(self, angles: ir.Value, interleaved: bool) -> tuple[ir.Node, Axes] | str:
        """`read_pick`, cached."""
        key = angles, interleaved
        if key not in self.picks:
            self.picks[key] = read_pick(angles, interleaved)
        return self.picks[key]

    def forget(self) -> None:
        """Clear what was cached about a graph."""
        self.picks.clear()
        self.tokens = None

    def rewrite(self, node: ir.Node, found: Mrotation, add: Builder) -> None:
        """Rotate where the op wants its rows: before the heads are moved to the front."""
        rotate(found.rotation, lambda x, layout: self.op(x, found, layout, add), add)

    def op(
        self, x: ir.Value, found: Mrotation, layout: dict[str, object], add: Builder
    ) -> ir.Value:
        """Add the rotation of one value, by either op."""
        if self.fused:
            sections = {"mrope_section": found.axes.section, "mrope_layout": found.axes.layout}
            inputs = [x, found.position, found.cos, found.sin]
            return add(
                "MRotaryEmbedding", inputs, layout | sections, domain="com.microsoft", like=x
            )
        if self.tokens is None:
            self.tokens = pick_tokens(found, add)
        inputs = [x, self.tokens.row, self.tokens.cos, self.tokens.sin]
        return add("RotaryEmbedding", inputs, layout, domain="com.microsoft", like=x)


@dataclass(frozen=True)
class Tokens:
    """Angles picked once for all layers, one row a token."""

    row: ir.Value
    """`[B, S]` int64: 0, 1, 2, ... through the batch."""
    cos: ir.Value
    sin: ir.Value
    """`[B * S, D/2]`."""


def pick_tokens(found: Mrotation, add: Builder) -> Tokens:
    """Pick the angle of each frequency from its axis: an exact selection, no arithmetic."""
    section, layout = found.axes.section, found.axes.layout
    axis = axes_by_frequency(section, layout)
    int64, frequencies = ir.DataType.INT64, len(axis)
    rows = add.constant(np.array([-1, frequencies], np.int64), f"rows_of_{frequencies}")
    picked = []
    for table in (found.cos, found.sin):
        per_axis = []
        for a in range(3):
            index = add.constant(np.array(a, np.int64), f"axis_{a}")
            one = add("Gather", [found.position, index], {"axis": 0}, dtype=int64)
            per_axis.append(add("Gather", [table, one], {"axis": 0}, dtype=table.dtype))
        angles = per_axis[0]
        for a in (1, 2):
            mask = add.constant(axis == a, f"frequencies_of_axis_{a}")
            angles = add("Where", [mask, per_axis[a], angles], dtype=table.dtype)
        picked.append(add("Reshape", [angles, rows], dtype=table.dtype, shape=(None, frequencies)))
    zero, one = (add.constant(np.array(n, np.int64), f"int_{n}") for n in (0, 1))
    index = add.constant(np.array(0, np.int64), "axis_0")
    first = add("Gather", [found.position, index], {"axis": 0}, dtype=int64)
    shape = add("Shape", [first], dtype=int64, shape=(2,))
    count = add("ReduceProd", [shape], {"keepdims": 0}, dtype=int64, shape=())
    numbers = add("Range", [zero, count, one], dtype=int64, shape=(None,))
    row = add("Reshape", [numbers, shape], dtype=int64, shape=(None, None))
    return Tokens(row, picked[0], picked[1])
