"""Angles of positions, read by running them: position times frequency, however it is written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from surgery.match.probe import Leaks, Region

STEPS = 12
"""Nodes between an angle and its position that are searched."""
CARRIERS = ("Mul", "MatMul", "Einsum", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Reshape",
            "Cast", "Identity", "Concat")  # fmt: skip
"""Ops that may stand between a position and its angle."""
PROBES = ((1, 1), (2, 3), (3, 5))
"""Lengths of the two axes of positions that are tried."""


def angles_of(angle: ir.Value) -> tuple[ir.Value, np.ndarray] | str:
    """The positions that angles belong to, and the frequencies.

    What lies between is run on positions of several shapes; each number has to be the float32
    product of the position and one frequency of its column, exactly.

    Args:
        angle: `[B, S, F]` float32.

    Returns:
        Positions `[B, S]` int64 and frequencies `[F]` float32, or the reason why not.
    """
    producer, shape = angle.producer(), angle.shape
    if producer is None or not isinstance(producer.graph, ir.Graph) or shape is None:
        return "computed angles of known shape"
    if len(shape) != 3 or not isinstance(shape[2], int):
        return f"angles of rank 3 with a known last axis, not {shape}"
    for position in positions(angle):
        frequencies = measured(producer.graph, position, angle, shape[2])
        if frequencies is not None:
            return position, frequencies
    return "no positions whose product with constant frequencies they are"


def positions(angle: ir.Value) -> Iterator[ir.Value]:
    """Values of int64 and rank 2 that angles are computed from, nearest first."""
    queue, seen = [angle], set()
    for _ in range(4 * STEPS):
        if not queue:
            return
        value = queue.pop(0)
        if value in seen:
            continue
        seen.add(value)
        if value.dtype == ir.DataType.INT64 and value.shape is not None and len(value.shape) == 2:
            yield value
            continue
        node = value.producer()
        if node is not None and node.op_type in CARRIERS:
            queue += [v for v in node.inputs if v is not None]


def measured(graph: ir.Graph, position: ir.Value, angle: ir.Value, count: int) -> np.ndarray | None:
    """The frequencies, where the angles are products with them at every probe."""
    inputs = list(dict.fromkeys([position, *graph.inputs]))
    try:
        region = Region(graph, inputs, angle)
    except Leaks:
        return None
    if region.numbers - {position.name}:
        return None
    frequencies: np.ndarray | None = None
    rows = position.shape[0] if position.shape is not None else None
    for number, (batch, sequence) in enumerate(PROBES):
        batch = rows if isinstance(rows, int) else batch
        rng = np.random.default_rng(number)
        given = rng.integers(1, 1 << 15, (batch, sequence))
        given = given if number else np.ones_like(given)
        feeds = lengths(region, position, (batch, sequence)) | {position.name or "": given}
        try:
            got = region(feeds)
        except Leaks:
            return None
        if got.shape != (batch, sequence, count) or got.dtype != np.float32:
            return None
        if frequencies is None:
            frequencies = got[0, 0].copy()
        if not np.array_equal(got, given[..., None].astype(np.float32) * frequencies):
            return None
    return frequencies


def lengths(region: Region, position: ir.Value, sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Zeros for inputs whose lengths the region reads; axes named as those of positions fit."""
    named = dict(zip(map(str, position.shape or ()), sizes, strict=False))
    return {
        value.name or "": np.zeros(
            [d if isinstance(d, int) else named.get(str(d), 1) for d in value.shape or ()],
            value.dtype.numpy() if value.dtype is not None else None,
        )
        for value in region.inputs
        if value is not position
    }
