"""Heads that share an axis with the batch, `[B * N, S, D]`, as `torch.bmm` reads them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.layout import MOVES, Axes, moved, origins, reshaped, transposed, untouched
from surgery.match.lengths import Lengths, equal, lengths_of, product, quotient

ROWS, POSITIONS = (0, 2, 1, 3), (2, 0, 1, 3)
"""Heads `[B, N, S, D]` as rows `[B, S, N, D]`, and as `[S, B, N, D]`."""


@dataclass(frozen=True)
class Folded:
    """The rows that folded heads are made of.

    Attributes:
        source: `[B, S, N * D]`, or `[S, B, N * D]`.
        positions: whether positions come first.
        lengths: B, N, S and D.
        factor: what the source was multiplied by on the way.
    """

    source: ir.Value
    positions: bool
    lengths: Lengths
    factor: float


def heads_in(value: ir.Value) -> int | None:
    """How many heads lie in the first axis of `[B * N, S, D]`, read off where it comes from."""
    found = None
    for origin in origins(value):
        first = origin.axes[0] if len(origin.axes) == 3 else ()
        last = first[-1] if first else None
        rank = len(origin.source.shape or ())
        if rank == 3 and last is not None and last.axis == 2 and isinstance(last.size, int):
            found = last.size
    return found


def folded(value: ir.Value, heads: int, turned: bool = False) -> Folded | None:
    """The farthest rows that folded heads are made of.

    Args:
        value: `[B * N, S, D]`, or `[B * N, D, S]` where it is turned.
        heads: N.
        turned: whether the last two axes are in the other order, as a product needs keys.
    """
    shape = lengths_of(value.shape)
    if shape is None or len(shape) != 3 or None in shape:
        return None
    batch = quotient(shape[0], heads)
    length, width = (shape[2], shape[1]) if turned else (shape[1], shape[2])
    if batch is None:
        return None
    found = None
    whole = batch, heads, length, width
    for origin in origins(value):
        axes = reshaped(origin.axes, (batch, heads, *shape[1:]))
        source = lengths_of(origin.source.shape)
        if axes is None or source is None or len(source) != 3:
            continue
        if turned:
            axes = transposed(axes, (0, 1, 3, 2))
        for positions in (False, True):
            front = (length, batch) if positions else (batch, length)
            fits = all(equal(a, b) for a, b in zip(source, front))
            if fits and axes == unfolded(source, whole, positions):
                found = Folded(origin.source, positions, whole, origin.factor)
                break
    return found


def unfolded(source: Lengths, whole: Lengths, positions: bool) -> Axes | None:
    """The layout of heads `[B, N, S, D]` made of rows in the usual way."""
    batch, heads, length, width = whole
    split = (length, batch, heads, width) if positions else (batch, length, heads, width)
    axes = reshaped(untouched(source), split)
    return None if axes is None else transposed(axes, (1, 2, 0, 3) if positions else (0, 2, 1, 3))


def joined_again(value: ir.Value, whole: Lengths) -> tuple[ir.Value, bool] | None:
    """Where folded heads `[B * N, S, D]` become rows again, and whether positions come first.

    The rows are `[B, S, N * D]` or `[S, B, N * D]`, perhaps with their first two axes in one.
    """
    shape = lengths_of(value.shape)
    axes = None if shape is None else reshaped(untouched(whole), shape)
    while axes is not None:
        for order in (ROWS, POSITIONS):
            if len(axes) <= 3 and rows_in(value, whole, order) == axes:
                return value, order == POSITIONS
        users = value.consumers()
        if len(users) != 1 or users[0].op_type not in MOVES or value.is_graph_output():
            return None
        axes = moved(users[0], axes)
        value = users[0].outputs[0]
    return None


def rows_in(value: ir.Value, whole: Lengths, order: tuple[int, ...]) -> Axes | None:
    """The layout that a value of rows has; None where its last axis is not that of whole rows."""
    shape, (_, heads, _, width) = lengths_of(value.shape), whole
    if shape is None or shape[-1] != product((heads, width)):
        return None
    return reshaped(transposed(untouched(whole), order), shape)
