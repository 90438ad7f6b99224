"""Caches of a fixed length: inputs that new keys and values are written into, not joined to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.layout import MOVES
from surgery.match.masks import rank, runnable, usual_sizes
from surgery.match.probe import Leaks, Region
from surgery.match.scores import LOWEST
from surgery.rewrite.matcher import Matcher

WRITES = ("ScatterND", "ScatterElements", "TensorScatter")
"""Ops that write into a tensor."""
INT64, INT32, BOOL = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL
TRIALS = ((1, 1, 0), (1, 3, 0), (2, 2, 0), (2, 1, 1), (2, 1, 4), (1, 3, 2))
"""Batches, new tokens and filled positions that a write and a mask are run with; beside them one
token at the last position, from where a window would not reach the first."""


@dataclass(frozen=True)
class Write:
    """New keys, or values, that are written into a cache.

    Attributes:
        past: the graph input, `[B, K, L, D]`.
        new: what is written, `[S, B, K, D]`.
        positions: where, `[S, 1]`.
    """

    past: ir.Value
    new: ir.Value
    positions: ir.Value


def in_place(value: ir.Value | None) -> tuple[ir.Value, str] | None:
    """The graph input of rank 4 that keys or values are written into, and by which op."""
    end = unmoved(value)
    node = end.producer() if end is not None else None
    if node is None or node.op_type not in WRITES:
        return None
    past = unmoved(node.inputs[0])
    if past is None or not past.is_graph_input() or rank(past) != 4:
        return None
    return past, node.op_type


def unmoved(value: ir.Value | None) -> ir.Value | None:
    """The value before everything that only moves its numbers."""
    while value is not None and (node := value.producer()) is not None and node.op_type in MOVES:
        value = node.inputs[0]
    return value


def written(value: ir.Value | None, m: Matcher) -> Write:
    """The write that keys or values `[B, K, L, D]` come from."""
    found = in_place(value)
    m.check(found is not None, "keys and values written into a graph input", "another form")
    assert found is not None and value is not None
    past, op = found
    m.check(op == "ScatterND", "positions written by ScatterND", op)
    turned = m.producer(value, "Transpose")
    m.check(perm(turned) == [1, 2, 0, 3], "the cache turned back", perm(turned))
    write = m.producer(turned.inputs[0], "ScatterND")
    how = write.attributes.get_string("reduction", "none")
    m.check(how == "none", "numbers that replace others", how)
    front = m.producer(write.inputs[0], "Transpose")
    m.check(front.inputs[0] is past and perm(front) == [2, 0, 1, 3],
            "positions of the cache in front", perm(front))  # fmt: skip
    positions, new = write.inputs[1:3]
    assert positions is not None and new is not None
    m.rank(positions, 2)
    m.rank(new, 4)
    return Write(past, new, positions)


def perm(node: ir.Node) -> list[int]:
    """The order of axes of a Transpose."""
    return list(node.attributes.get_ints("perm", ()))


def read_writes(
    positions: ir.Value, mask: ir.Value, past: ir.Value, query: ir.Value
) -> ir.Value | str | None:
    """Run positions and mask, and compare them with those of a cache that is filled in order.

    Inputs that hold positions are fed with numbers that follow each other, alike in all rows: then
    the new tokens must go behind the filled positions, and a query must see every position up to
    its own that the padding input does not hide.

    Args:
        positions: `[S, 1]`.
        mask: `[B, 1, S, L]`.
        past: `[B, K, L, D]`.
        query: `[B, N, S, D]`.

    Returns:
        The padding input `[B, L]`, None where there is none, or the reason why it is another cache.
    """
    where, hides = runnable(positions), runnable(mask)
    if isinstance(where, str):
        return f"positions: {where}"
    if isinstance(hides, str):
        return f"a mask: {hides}"
    assert past.shape is not None and query.shape is not None
    size = past.shape[2]
    if not isinstance(size, int) or size < 8:
        return f"a cache of {size} positions"
    found = list(paddings(hides, size))
    if len(found) > 1:
        return f"{len(found)} inputs could be the padding"
    padding = next(iter(found), None)
    read = *where.inputs, *hides.inputs
    for batch, sequence, filled in (*TRIALS, (2, 1, size - 1)):
        sizes = usual_sizes(read, batch, sequence, size)
        sizes |= {str(past.shape[0]): batch, str(query.shape[2]): sequence}
        spot = f"batch {batch}, sequence {sequence}, behind {filled}"
        valid = np.ones((batch, size), bool)
        valid[0, filled + max(1, sequence - 1) : filled + sequence] = False
        feeds = {v.name or "": fed(v, sizes, filled, sequence) for v in read}
        if padding is not None:
            assert padding.dtype is not None
            feeds[padding.name or ""] = valid.astype(padding.dtype.numpy())
        else:
            valid[:] = True
        try:
            rows, got = where(feeds), hides(feeds)
        except Leaks as e:
            return f"another cache, which does not run at {spot}: {e}"
        if not np.array_equal(rows.ravel(), np.arange(filled, filled + sequence)):
            return f"other positions at {spot}: {rows.ravel().tolist()}"
        if got.dtype == np.float32 and bool(np.all((got == 0) | (got <= LOWEST))):
            got = got == 0
        seen = np.arange(size)[None] <= np.arange(filled, filled + sequence)[:, None]
        want = seen[None, None] & valid[:, None, None]
        if got.dtype != bool or not np.array_equal(np.broadcast_to(got, want.shape), want):
            return f"another mask at {spot}"
    return padding


def paddings(region: Region, size: int) -> Iterator[ir.Value]:
    """Inputs that hold a number for each position of each row."""
    for value in region.inputs:
        shape = value.shape
        whole = shape is not None and len(shape) == 2 and shape[1] == size
        if whole and value.name in region.numbers and value.dtype in (INT64, INT32, BOOL):
            yield value


def fed(value: ir.Value, sizes: dict[str, int], filled: int, sequence: int) -> np.ndarray:
    """An array for a graph input: positions behind the filled ones where it holds integers."""
    assert value.shape is not None and value.dtype is not None
    shape = [d if isinstance(d, int) else sizes.get(str(d), 1) for d in value.shape]
    if value.dtype not in (INT64, INT32):
        return np.zeros(shape, value.dtype.numpy())
    steps = np.arange(sequence) if shape and shape[-1] == sequence else np.zeros(1, np.int64)
    last = filled + steps if shape else np.int64(filled)
    return np.broadcast_to(last, shape).astype(value.dtype.numpy())
