"""Rotary position embedding as exporters write it: rotations of halves and of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from surgery.match.nodes import made_by, other_operand, slice_bounds
from surgery.rewrite.builder import Builder, replace
from surgery.rewrite.matcher import Matcher


@dataclass(frozen=True)
class Rotation:
    """`x * cos + turn(x) * sin`; turn(x) is (-x2, x1) of halves x1, x2 or of each pair.

    Attributes:
        x: what is rotated.
        cos: the cosines, which broadcast against x (head axis of 1); `sin` likewise.
        sin: the sines; see `cos`.
        end: the result.
        width: size of the last axis of x.
        interleaved: columns 2i and 2i + 1 turn together, not i and i + width / 2.
        whole: x, or the wider rows whose first columns x is (partial rotary).
        joined: `end`, or with partial rotary the Concat of `end` and the other columns.
    """

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    end: ir.Value
    width: int
    interleaved: bool
    whole: ir.Value
    joined: ir.Value


def rotation(node: ir.Node, m: Matcher) -> Rotation:
    """Match from the `Concat` inside turn(x), the anchor, up to x and down to the sum."""
    m.check(len(node.inputs) == 2, "two halves", len(node.inputs))
    interleaved = all(v is not None and made_by(v, "Unsqueeze") for v in node.inputs)
    x, width, turned = pairs(node, m) if interleaved else halves(node, m)
    product = m.user(turned, "Mul")
    sin = other_operand(product, turned)
    total = m.user(product.outputs[0], "Add")
    straight = m.producer(other_operand(total, product.outputs[0]), "Mul")
    m.check(x in straight.inputs, "x * cos as the other term", "another product")
    cos, end = other_operand(straight, x), total.outputs[0]
    whole, joined = around(x, end, width, m) or (x, end)
    return Rotation(x, cos, sin, end, width, interleaved, whole, joined)


def halves(node: ir.Node, m: Matcher) -> tuple[ir.Value, int, ir.Value]:
    """x, its width and `concat(-x2, x1)`, x1 and x2 the halves of x."""
    negated = m.producer(node.inputs[0], "Neg")
    second = m.producer(negated.inputs[0], "Slice", "Split")
    first = m.producer(node.inputs[1], "Slice", "Split")
    x, width = parted(first, second, m)
    last = (-1, len(x.shape or ()) - 1)
    axis = node.attributes["axis"].as_int()
    m.check(axis in last, "halves joined along the last axis", axis)
    if first.op_type == "Slice":
        lower, upper = slice_bounds(first, m), slice_bounds(second, m)
        m.check(lower[2] in last and upper[2] in last, "slices of the last axis", lower[2])
        m.check(lower[:2] == (0, width // 2), f"a first half of {width // 2}", lower[:2])
        m.check(upper[0] == width // 2 and upper[1] >= width, "the second half", upper[:2])
    else:
        m.check(first is second, "one Split", "two")
        m.check(
            node.inputs[1] is first.outputs[0], "the first half as the second part", "another order"
        )
        m.check(first.attributes.get_int("axis", 0) in last, "a Split of the last axis", "another")
        parts = [v.shape[-1] if v.shape is not None else None for v in first.outputs]
        m.check(parts == [width // 2] * 2, f"halves of {width // 2}", parts)
    return x, width, node.outputs[0]


def pairs(node: ir.Node, m: Matcher) -> tuple[ir.Value, int, ir.Value]:
    """x, its width and (-x[1], x[0], -x[3], x[2], ...)."""
    lifted = [m.producer(value, "Unsqueeze") for value in node.inputs]
    second = m.producer(m.producer(lifted[0].inputs[0], "Neg").inputs[0], "Slice")
    first = m.producer(lifted[1].inputs[0], "Slice")
    x, width = parted(first, second, m)
    rank = len(x.shape or ())
    axis = node.attributes["axis"].as_int()
    m.check(axis in (-1, rank), "pairs stacked along a new last axis", axis)
    axes = [m.constant(u.inputs[1]).ravel().tolist() for u in lifted]
    m.check(all(a in ([-1], [rank]) for a in axes), "pairs stacked along a new last axis", axes)
    for part, start in ((first, 0), (second, 1)):
        begin, end, along = slice_bounds(part, m, step=2)
        m.check(along in (-1, rank - 1), "slices of the last axis", along)
        m.check(
            (begin, end >= width) == (start, True),
            f"every second column from {start}",
            (begin, end),
        )
    flat = m.user(node.outputs[0], "Reshape").outputs[0]
    fits = flat.shape is not None and flat.shape == x.shape
    m.check(fits, f"pairs back in rows of {width}", flat.shape)
    return x, width, flat


def parted(first: ir.Node, second: ir.Node, m: Matcher) -> tuple[ir.Value, int]:
    """The value that both nodes take a part of, and its width."""
    x = first.inputs[0]
    assert x is not None
    m.check(second.inputs[0] is x, "halves of one value", "halves of two values")
    width = x.shape[-1] if x.shape is not None else None
    m.check(isinstance(width, int), "a known last axis", x.shape)
    assert isinstance(width, int)
    return x, width


def around(x: ir.Value, end: ir.Value, width: int, m: Matcher) -> tuple[ir.Value, ir.Value] | None:
    """With partial rotary: the whole rows, and the rows with rotated first columns."""
    part, users = x.producer(), end.consumers()
    if part is None or part.op_type not in ("Slice", "Split") or end.is_graph_output():
        return None
    if len(users) != 1 or users[0].op_type != "Concat" or users[0].inputs[0] is not end:
        return None
    joined, rest = users[0], users[0].inputs[-1].producer() if users[0].inputs[-1] else None
    whole = part.inputs[0]
    if rest is None or whole is None or whole.shape is None or len(joined.inputs) != 2:
        return None
    last = (-1, len(whole.shape) - 1)
    m.check(joined.attributes["axis"].as_int() in last, "parts joined along the last axis", joined)
    m.check(rest.inputs[0] is whole, "the rest of the same rows behind", "another value")
    if part.op_type == "Slice":
        front, back = slice_bounds(part, m), slice_bounds(rest, m)
        fits = front == (0, width, front[2]) and front[2] in last and back[2] in last
        m.check(fits, f"the first {width} columns", front)
        size = whole.shape[-1]
        whole_rest = back[0] == width and isinstance(size, int) and back[1] >= size
        m.check(whole_rest, "the rest of the columns behind", back)
    else:
        m.check(rest is part, "the rest of one Split behind", rest.op_type)
        m.check(x is part.outputs[0] and len(part.outputs) == 2, "a front part", "another")
    return whole, joined.outputs[0]


def unsqueezed(value: ir.Value, m: Matcher) -> ir.Value:
    """The value before the `Unsqueeze` that added a head axis."""
    node = m.producer(value, "Unsqueeze")
    source = node.inputs[0]
    assert source is not None
    m.rank(value, 3, 4)
    axis = m.constant(node.inputs[1]).ravel().tolist()
    m.check(axis in ([1], [1 - len(value.shape or ())]), "a head axis added at 1", axis)
    return source


def once(value: ir.Value, m: Matcher, interleaved: bool) -> ir.Value:
    """The angles before repetition: as a second half, or next to each other if interleaved."""
    if not interleaved:
        node = m.producer(value, "Concat")
        half = node.inputs[0]
        assert half is not None
        alike = len(node.inputs) == 2 and node.inputs[1] is half
        m.check(alike, "the same angles twice", "others")
        return half
    spread = m.producer(m.producer(value, "Reshape").inputs[0], "Expand")
    lifted = m.producer(spread.inputs[0], "Unsqueeze")
    half = lifted.inputs[0]
    assert half is not None and value.shape is not None and half.shape is not None
    axis = m.constant(lifted.inputs[1]).ravel().tolist()
    m.check(axis in ([-1], [len(half.shape)]), "each angle beside itself", axis)
    shape = [*half.shape[:-1], 2 * half.shape[-1]] if isinstance(half.shape[-1], int) else None
    m.check(list(value.shape) == shape, "the same angles twice", value.shape)
    return half


def twice(table: np.ndarray, interleaved: bool) -> bool:
    """Whether the last axis holds the same numbers twice, in halves or in pairs."""
    half = table.shape[-1] // 2
    a, b = (
        (table[..., 0::2], table[..., 1::2])
        if interleaved
        else (table[..., :half], table[..., half:])
    )
    return bool(np.array_equal(a, b))


Op = Callable[[ir.Value, dict[str, object]], ir.Value]
"""Adds the op that rotates `[B, S, N * D]` or `[B, N, S, D]`, given its attributes."""


def layout(found: Rotation, tokens_first: bool = True) -> dict[str, object]:
    """The op's attributes for `[B, S, N * D]`, or `[B, N, S, D]` without `tokens_first`."""
    assert found.whole.shape is not None
    attributes: dict[str, object] = {}
    if tokens_first or found.whole is not found.x:
        attributes["num_heads"] = found.whole.shape[1]
    if found.whole is not found.x:
        attributes["rotary_embedding_dim"] = found.width
    if found.interleaved:
        attributes["interleaved"] = 1
    return attributes


def rotate(found: Rotation, op: Op, add: Builder) -> None:
    """Replace a rotation by an op; if a Transpose moved the heads first, rotate before it."""
    whole = found.whole
    shape = whole.shape
    assert shape is not None and isinstance(shape[-1], int)
    heads, width = shape[1], shape[-1]
    moved = whole.producer()
    before = moved.inputs[0] if moved is not None and moved.op_type == "Transpose" else None
    perm = moved.attributes.get_ints("perm", ()) if moved is not None else ()
    if before is None or not isinstance(heads, int) or list(perm) != [0, 2, 1, 3]:
        replace(found.joined, op(whole, layout(found, tokens_first=False)))
        return
    b, s, *_ = before.shape or (None,) * 4
    flat = add.constant(np.array([0, 0, heads * width], np.int64), f"merge_{heads}_heads")
    split = add.constant(np.array([0, 0, heads, width], np.int64), f"split_{heads}_heads")
    x = add("Reshape", [before, flat], dtype=before.dtype, shape=(b, s, heads * width))
    out = op(x, layout(found))
    out = add("Reshape", [out, split], like=before)
    replace(found.joined, add("Transpose", [out], {"perm": [0, 2, 1, 3]}, like=whole))


def batched(position: ir.Value, x: ir.Value, add: Builder) -> ir.Value:
    """Positions `[B, S]` of rows x `[B, ...]`; those of `[1, S]` hold for every row."""
    rows = position.shape[0] if position.shape is not None else None
    batch = x.shape[0] if x.shape is not None else None
    if rows != 1 or batch == 1:
        return position
    one = add.constant(np.array([1], np.int64), "one_row")
    count = add("Shape", [x], {"start": 0, "end": 1}, dtype=ir.DataType.INT64, shape=[1])
    wide = add("Concat", [count, one], {"axis": 0}, dtype=ir.DataType.INT64, shape=[2])
    assert position.shape is not None
    return add("Expand", [position, wide], dtype=position.dtype, shape=(batch, position.shape[1]))
