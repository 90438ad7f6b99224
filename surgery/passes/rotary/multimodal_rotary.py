"""Multimodal rotary embedding of queries and keys as one node each."""

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
    after   MRotaryEmbedding(x, position_ids, cos table, sin table), or where a provider lacks it
            RotaryEmbedding(x, row of each token, picked cos, picked sin), picked with two Where
    keeps   any (t, h, w); the sections are read off the graph by running `pick` on codes;
            halves or pairs turn, the whole head or its front part
    not     one position axis (plain rotary); a pick that is neither interleaved nor sectioned
    why     74 nodes once and 7 nodes twice a layer run at every token; 2 a layer do
    """

    name = "multimodal_rotary"
    needs = ("dims", "fold", "noop", "static_reshape")
    anchors = ("Concat",)

    def __init__(self, fused: bool = True, *, expect: int | None = None) -> None:
        """Start without knowledge of any pick.

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
        """The gather behind `angles [B, S, D]` and what is picked of it, or why not."""
        key = angles, interleaved
        if key not in self.picks:
            self.picks[key] = read_pick(angles, interleaved)
        return self.picks[key]

    def forget(self) -> None:
        """Drop what was learnt of a graph."""
        self.picks.clear()
        self.tokens = None

    def rewrite(self, node: ir.Node, found: Mrotation, add: Builder) -> None:
        """Rotate before the heads are moved to the front, where the op wants them."""
        rotate(found.rotation, lambda x, layout: self.op(x, found, layout, add), add)

    def op(
        self, x: ir.Value, found: Mrotation, layout: dict[str, object], add: Builder
    ) -> ir.Value:
        """The rotation of one value, by either op."""
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
