"""Attention inside the segments of a packed row: the branches that `packed_attention` builds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import Builder
from surgery.rewrite.subgraphs import SubgraphBuilder

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True)
class Segments:
    """Values that all layers share: `starts`, `ends` and `count` of segments, int64.

    `alike` is a bool: all segments have one length.
    """

    starts: ir.Value
    ends: ir.Value
    count: ir.Value
    alike: ir.Value
    batched: ir.Value
    """The shape `[segments, P / segments, N * D]`, correct where segments are alike."""


def segments(ends: ir.Value, columns: int, axis: str, add: Builder) -> Segments:
    """Compute once for all layers what the branches read; `axis` names the axis of segments."""

    def ints(*numbers: int) -> ir.Value:
        return add.constant(np.array(numbers, np.int64), "ints_" + "_".join(map(str, numbers)))

    def op(
        name: str, inputs: list[ir.Value], shape: tuple[object, ...], **attributes: int
    ) -> ir.Value:
        return add(name, inputs, attributes, dtype=INT64, shape=shape)

    ends = op("Reshape", [ends, ints(-1)], (axis,))
    head = op("Slice", [ends, ints(0), ints(-1), ints(0)], (None,))
    starts = op("Concat", [ints(0), head], (axis,), axis=0)
    length = op("Sub", [ends, starts], (axis,))
    longest = op("ReduceMax", [length], (1,), keepdims=1)
    shortest = op("ReduceMin", [length], (1,), keepdims=1)
    count = op("Shape", [ends], (1,))
    batched = op("Concat", [count, longest, ints(columns)], (3,), axis=0)
    alike = add("Equal", [longest, shortest], dtype=BOOL, shape=(1,))
    return Segments(starts, ends, count, alike, batched)


def alike_branch(
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    shared: Segments,
    attributes: dict[str, object],
    add: Builder,
) -> ir.Graph:
    """One batched attention, `[segments, length, columns]`."""
    inner = SubgraphBuilder(add)
    batch = [inner("Reshape", [value, shared.batched]) for value in (q, k, v)]
    out = inner("MultiHeadAttention", batch, attributes, domain="com.microsoft")
    flat = next(v for v in q.producer().inputs[1:])  # type: ignore[union-attr]
    assert flat is not None
    return inner.graph("alike", [], [inner("Reshape", [out, flat])])


def loop_branch(
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    shared: Segments,
    attributes: dict[str, object],
    columns: int,
    add: Builder,
) -> ir.Graph:
    """One attention per segment, the results collected in a sequence.

    A result that grew by `Concat` would be copied once per segment: with the hundreds of windows
    of a large picture, that took six times as long as the whole loop.
    """

    def value(name: str, dtype: ir.DataType) -> ir.Value:
        return ir.Value(name=add.unique(name), type=ir.TensorType(dtype), shape=ir.Shape(()))

    def sequence(value: ir.Value) -> ir.Value:
        value.type, value.shape = ir.SequenceType(ir.TensorType(FLOAT)), None
        return value

    body = SubgraphBuilder(add)
    step, go, done = value("step", INT64), value("go", BOOL), sequence(value("done", FLOAT))
    zero, one = (add.constant(np.array([n], np.int64), f"ints_{n}") for n in (0, 1))
    at = body("Unsqueeze", [step, zero], dtype=INT64)
    start = body("Gather", [shared.starts, at], {"axis": 0}, dtype=INT64)
    stop = body("Gather", [shared.ends, at], {"axis": 0}, dtype=INT64)
    segment = [body("Slice", [value, start, stop, one]) for value in (q, k, v)]
    out = body("MultiHeadAttention", segment, attributes, domain="com.microsoft")
    more = sequence(body("SequenceInsert", [done, out]))
    again = body("Identity", [go], dtype=BOOL)
    loop = body.graph("segment", [step, go, done], [again, more])

    inner = SubgraphBuilder(add)
    trips = inner("Squeeze", [shared.count, zero], dtype=INT64)
    empty = add.constant(np.zeros((1, 0, columns), np.float32), f"no_rows_of_{columns}")
    true = add.constant(np.array(True), "true")
    # a SequenceEmpty would fix the dtype, which `half` may change
    none = sequence(inner("SequenceConstruct", [empty]))
    parts = sequence(inner("Loop", [trips, true, none], {"body": loop}))
    return inner.graph("unlike", [], [inner("ConcatFromSequence", [parts], {"axis": 1})])
