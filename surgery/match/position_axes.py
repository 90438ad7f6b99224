"""Which position axis (time, height, width) each rotary frequency uses, found by running."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.probe import Leaks, Region, lookups
from surgery.match.rotary import twice

SECTIONED, INTERLEAVED = 0, 1
"""Values of the op's `mrope_layout`."""


@dataclass(frozen=True)
class Axes:
    """Which of the three position axes each frequency uses.

    Attributes:
        section: number of frequencies that use time, height and width.
        layout: `SECTIONED` or `INTERLEAVED`.
    """

    section: tuple[int, int, int]
    layout: int


def read_pick(angles: ir.Value, interleaved: bool) -> tuple[ir.Node, Axes] | str:
    """The Gather that `angles` come from and the axis of each frequency, or why there is none."""
    tables = lookups(angles)
    if len(tables) != 1:
        return f"{len(tables)} tables behind {angles.name}"
    (gather,) = tables
    table, position, picked = *gather.inputs, gather.outputs[0]
    assert table is not None and table.shape is not None and position is not None
    shape = position.shape
    if shape is None or len(shape) != 3 or shape[0] != 3:
        return f"positions of shape {shape}"
    frequencies = table.shape[1]
    if not isinstance(frequencies, int) or not isinstance(gather.graph, ir.Graph):
        return f"a table of shape {table.shape}"
    code = np.arange(3 * 2 * 5 * frequencies, dtype=np.float32).reshape(3, 2, 5, frequencies)
    try:
        turned = Region(gather.graph, [picked], angles)({picked.name or "": code})
    except Leaks as e:
        return f"a pick that reads more than the table: {e}"
    axes = read_axes(code, turned, interleaved)
    return "a pick that is neither interleaved nor sectioned" if axes is None else (gather, axes)


def read_axes(code: np.ndarray, out: np.ndarray, interleaved: bool) -> Axes | None:
    """Sections and layout, from distinct numbers `[3, B, S, F]` and those picked `[B, S, 2F]`."""
    frequencies = code.shape[-1]
    if out.shape != (*code.shape[1:3], 2 * frequencies) or not twice(out, interleaved):
        return None
    out = out[..., ::2] if interleaved else out[..., :frequencies]
    axis = np.array(
        [
            next((a for a in range(3) if np.array_equal(out[..., f], code[a, ..., f])), -1)
            for f in range(frequencies)
        ]
    )
    section = tuple(int((axis == a).sum()) for a in range(3))
    for layout in (INTERLEAVED, SECTIONED):
        if np.array_equal(axis, axes_by_frequency(section, layout)):
            return Axes(section, layout)  # type: ignore[arg-type]
    return None


def axes_by_frequency(section: tuple[int, ...], layout: int) -> np.ndarray:
    """Axis of each frequency, `[F]`, as the op's schema defines its layouts."""
    if layout == SECTIONED:
        return np.repeat(np.arange(3), section)
    axis = np.zeros(sum(section), np.int64)
    for a in (1, 2):
        axis[a : 3 * section[a] : 3] = a
    return axis
