"""Attention masks: causal ones, read by running them, and masks as numbers to be added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.probe import Leaks, Region
from surgery.match.scores import LOWEST
from surgery.rewrite.builder import Builder


@dataclass(frozen=True)
class Mask:
    """What a causal mask depends on."""

    padding: ir.Value | None
    """The graph's attention mask, `[B, T]`; None where no input hides a key."""
    window: int | None
    """Positions that a query sees, itself included; None for all before it."""


def read_mask(mask: ir.Value, past: ir.Value, query: ir.Value) -> Mask | str:
    """Run the mask on small inputs and compare it with (causal, within a window, and padding).

    A window has no effect on sequences shorter than itself. One probe therefore uses a past longer
    than any integer constant in the computation of the mask, so that a window must show; the
    window that it measures must explain the other probes too.

    Args:
        mask: `[B, 1, S, T]`.
        past: past keys `[B, K, P, D]`, whose shape names the axes B and P.
        query: `[B, N, S, D]`, whose shape names the axis S.

    Returns:
        The padding input, if there is one, and the window, or the reason why this is no causal
        mask.
    """
    region = runnable(mask)
    if isinstance(region, str):
        return region
    candidates = [
        v
        for v in region.inputs
        if v.name in region.numbers and v.dtype == ir.DataType.INT64 and rank(v) == 2
    ]
    if len(candidates) > 1:
        return f"another mask: {len(candidates)} inputs could be the padding"
    padding = next(iter(candidates), None)
    far = max((c for c in region.constants if 0 < c < 1 << 24), default=0) + 2
    window = None
    for b, s, p in ((1, 1, far), (2, 3, 2), (1, 4, 0), (2, 3, far)):
        if p == far and s > 1 and window is None:
            continue
        sizes = usual_sizes(region.inputs, b, s, p)
        sizes |= named_sizes(past, query, padding, b, s, p)
        feeds = {v.name or "": example(v, v is padding, sizes, s) for v in region.inputs}
        valid = np.ones((b, p + s), bool)
        if padding is not None:
            valid = feeds[padding.name or ""].astype(bool)
        try:
            got = region(feeds)
        except Leaks as e:
            return f"another mask, which does not run at batch {b}, sequence {s}, past {p}: {e}"
        if got.dtype == np.float32 and bool(np.all((got == 0) | (got <= LOWEST))):
            got = got == 0
        if got.dtype != bool or not got.size:
            return f"another mask, of {got.dtype}"
        if p == far and s == 1:
            seen = int(got.sum())
            window = seen if 0 < seen <= far else None
        distance = np.arange(p, p + s)[:, None] - np.arange(p + s)[None, :]
        causal = (distance >= 0) & (distance < (window or p + s))
        want = causal[None, None] & valid[:, None, None]
        if not np.array_equal(np.broadcast_to(got, want.shape), want):
            return f"another mask at batch {b}, sequence {s}, past {p}"
    return Mask(padding, window)


def runnable(mask: ir.Value) -> Region | str:
    """The nodes between the graph's inputs and a mask, or the reason why it cannot be run."""
    producer = mask.producer()
    if producer is None or not isinstance(producer.graph, ir.Graph):
        return "a graph input or a constant"
    try:
        return Region(producer.graph, producer.graph.inputs, mask)
    except Leaks as e:
        return f"a mask that reads more than the graph's inputs: {e}"


def rank(value: ir.Value) -> int | None:
    """Rank, where known."""
    return None if value.shape is None else len(value.shape)


def usual_sizes(inputs: Iterable[ir.Value], batch: int, sequence: int, past: int) -> dict[str, int]:
    """Sizes of axes by their place, where an exporter named equal axes differently.

    Rows come first, in tokens `[B, S]` the new positions second, in a cache `[B, K, P, D]` the
    past third.
    """
    sizes: dict[str, int] = {}
    for value in inputs:
        axes = list(value.shape or ())
        places = {0: batch} | {2: {1: sequence}, 4: {2: past}}.get(len(axes), {})
        sizes |= {str(axes[i]): size for i, size in places.items() if i < len(axes)}
    return sizes


def named_sizes(
    past: ir.Value,
    query: ir.Value,
    padding: ir.Value | None,
    batch: int,
    sequence: int,
    length: int,
) -> dict[str, int]:
    """Sizes of the graph's named axes."""
    assert past.shape is not None
    sizes = {
        "sequence": sequence,
        "total": length + sequence,
        str(past.shape[0]): batch,
        str(past.shape[2]): length,
    }
    if padding is not None and padding.shape is not None:
        sizes |= {str(padding.shape[0]): batch, str(padding.shape[1]): length + sequence}
    if query.shape is not None:
        sizes[str(query.shape[2])] = sequence
    return sizes


def example(value: ir.Value, padding: bool, sizes: dict[str, int], sequence: int) -> np.ndarray:
    """An array for a graph input; right-padded rows for the attention mask, zeros elsewhere."""
    assert value.shape is not None and value.dtype is not None
    shape = [d if isinstance(d, int) else sizes.get(str(d), 1) for d in value.shape]
    array = np.zeros(shape, value.dtype.numpy())
    if padding:
        array[:] = 1
        array[0, -1] = sequence == 1
    return array


def additive_mask(mask: ir.Value, add: Builder) -> ir.Value:
    """A mask as numbers to be added to the scores."""
    if mask.dtype == ir.DataType.FLOAT:
        return mask
    nil = add.constant(np.array(0, np.float32), "shown")
    lowest = add.constant(np.array(np.finfo(np.float32).min), "hidden")
    return add("Where", [mask, nil, lowest], dtype=ir.DataType.FLOAT, shape=mask.shape)


PADDED = ((1, 3), (2, 4), (3, 7))
"""Rows and lengths of padding masks that are tried."""


def read_padding(mask: ir.Value) -> ir.Value | str:
    """Run a mask and compare it with one that hides the same keys from every query of a row.

    Args:
        mask: `[B, 1, S, S]`, bool, or float to be added.

    Returns:
        The graph's padding input `[B, S]`, or the reason why the mask is another one.
    """
    region = runnable(mask)
    if isinstance(region, str):
        return region
    read = [v for v in region.inputs if v.name in region.numbers]
    whole = [v for v in read if v.dtype in (ir.DataType.INT64, ir.DataType.INT32) and rank(v) == 2]
    if len(read) != 1 or len(whole) != 1:
        return f"a mask that reads the numbers of {len(read)} inputs"
    (padding,) = whole
    assert padding.shape is not None and padding.dtype is not None
    for rows, length in PADDED:
        sizes = usual_sizes(region.inputs, rows, length, 0)
        sizes |= dict(zip(map(str, padding.shape), (rows, length), strict=True))
        feeds = {v.name or "": example(v, False, sizes, length) for v in region.inputs}
        valid = np.random.default_rng(length).random((rows, length)) < 0.5
        valid[:, rows % length] = True
        feeds[padding.name or ""] = valid.astype(padding.dtype.numpy())
        try:
            got = region(feeds)
        except Leaks as e:
            return f"another mask, which does not run at batch {rows}, length {length}: {e}"
        if got.dtype == np.float32 and bool(np.all((got == 0) | (got <= LOWEST))):
            got = got == 0
        if got.dtype != bool or got.ndim != 4 or got.shape[-1] != length:
            return f"another mask, {got.shape} of {got.dtype}"
        want = np.broadcast_to(valid[:, None, None], (rows, 1, got.shape[2], length))
        if not np.array_equal(np.broadcast_to(got, want.shape), want):
            return f"another mask at batch {rows}, length {length}"
    return padding
