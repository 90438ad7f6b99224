"""Where each number of a moved tensor comes from: reshapes, transposes and repetitions composed.

Exporters move heads in dozens of ways. A layout says, axis by axis, which parts of which axis of a
source lie there, so that two ways of writing the same movement have the same layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.match.lengths import Length, Lengths, equal, lengths_of, product, quotient
from surgery.rewrite.matcher import constant

MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Identity", "Tile")
"""Ops that move or repeat numbers without changing any."""
FAR = 16
"""Movements that are followed back."""


@dataclass(frozen=True)
class Part:
    """Some positions of one axis of the source, `stride` apart; or copies, where axis is None."""

    axis: int | None
    stride: Length
    size: Length


Axes = tuple[tuple[Part, ...], ...]
"""For each axis of a value the parts of the source along it, the slowest first."""


@dataclass(frozen=True)
class Origin:
    """A value that another is moved from.

    Attributes:
        source: the value.
        axes: where its numbers lie in the other one.
        factor: what they were multiplied by on the way.
    """

    source: ir.Value
    axes: Axes
    factor: float


def untouched(shape: Lengths) -> Axes:
    """Every axis of a source as it is."""
    return tuple(() if n == 1 else (Part(i, 1, n),) for i, n in enumerate(shape))


def reshaped(axes: Axes, shape: Sequence[Length]) -> Axes | None:
    """The same numbers in rows of other lengths; None where an axis would be cut at odd places."""
    left = [part for axis in axes for part in axis]
    out: list[tuple[Part, ...]] = []
    for length in shape:
        taken: list[Part] = []
        size: Length = 1
        while not equal(size, length):
            if not left:
                return None
            part = left.pop(0)
            whole = product((size, part.size))
            if quotient(length, whole) is not None:
                taken.append(part)
                size = whole
                continue
            outer = quotient(length, size)
            inner = quotient(part.size, outer)
            if outer is None or inner is None:
                return None
            taken.append(Part(part.axis, product((part.stride, inner)), outer))
            left.insert(0, Part(part.axis, part.stride, inner))
            size = length
        out.append(joined(taken))
    return None if left else tuple(out)


def joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbouring parts that are one, as one."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if last is not None and last.axis == part.axis:
            copies = part.axis is None
            if copies or equal(last.stride, product((part.stride, part.size))):
                out[-1] = Part(part.axis, part.stride, product((last.size, part.size)))
                continue
        out.append(part)
    return tuple(out)


def transposed(axes: Axes, perm: Sequence[int]) -> Axes:
    """Axes in another order."""
    return tuple(axes[i] for i in perm)


def expanded(axes: Axes, before: Lengths, after: Lengths) -> Axes | None:
    """Axes of length 1 repeated, new ones put in front."""
    missing = len(after) - len(before)
    out: list[tuple[Part, ...]] = []
    for i, length in enumerate(after):
        old = before[i - missing] if i >= missing else 1
        if old is not None and equal(old, length):
            out.append(axes[i - missing] if i >= missing else ())
        elif old == 1:
            out.append((Part(None, 0, length),))
        else:
            return None
    return tuple(out)


def moved(node: ir.Node, axes: Axes) -> Axes | None:
    """A layout after a node that moves numbers; None where it cannot be followed."""
    source, out = node.inputs[0], node.outputs[0]
    before = lengths_of(source.shape) if source is not None else None
    after = lengths_of(out.shape)
    if before is None or after is None or None in after or len(axes) != len(before):
        return None
    if node.op_type == "Identity":
        return axes
    if node.op_type == "Transpose":
        return transposed(axes, node.attributes.get_ints("perm", tuple(range(len(axes)))[::-1]))
    if node.op_type == "Expand":
        return expanded(axes, before, after)
    if node.op_type == "Tile":
        return tiled(axes, before, after)
    return reshaped(axes, after)


def tiled(axes: Axes, before: Lengths, after: Lengths) -> Axes | None:
    """Axes written several times behind each other."""
    out: list[tuple[Part, ...]] = []
    for axis, old, new in zip(axes, before, after, strict=True):
        times = quotient(new, old)
        if times is None:
            return None
        out.append(axis if times == 1 else (Part(None, 0, times), *axis))
    return tuple(out)


def origins(value: ir.Value) -> Iterator[Origin]:
    """Values that a value is moved from, itself first, the farthest last."""
    path: list[ir.Node] = []
    factor, current = 1.0, value
    for _ in range(FAR):
        shape = lengths_of(current.shape)
        axes = untouched(shape) if shape is not None and None not in shape else None
        for node in reversed(path):
            axes = moved(node, axes) if axes is not None else None
        if axes is not None:
            yield Origin(current, axes, factor)
        made = current.producer()
        if made is None or not made.inputs or made.inputs[0] is None:
            return
        scaled = scaling(made)
        if scaled is not None:
            current, factor = scaled[0], factor * scaled[1]
        elif made.op_type in MOVES and made.domain == "":
            path.append(made)
            current = made.inputs[0]
        else:
            return


def scaling(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The value that a node multiplies by one constant number, and that number."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    pairs = (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else (node.inputs,)
    for value, by in pairs:
        numbers = constant(by)
        if value is None or numbers is None or numbers.size != 1 or numbers.dtype.kind != "f":
            continue
        rank = len(value.shape) if value.shape is not None else 0
        if numbers.ndim > rank or constant(value) is not None:
            continue
        number = float(numbers.item())
        if node.op_type == "Div" and number == 0:
            return None
        return value, number if node.op_type == "Mul" else 1 / number
    return None


@dataclass(frozen=True)
class Heads:
    """Heads `[B, N, S, D]` and the rows that they are made of.

    Attributes:
        source: `[B, S, K * D]`, `[B, S, K, D]` or `[B, K, S, D]`.
        form: "joined", "rows" or "heads", in this order.
        heads: K; N is a multiple of it.
        repeats: N / K: how often each head stands behind itself.
        factor: what the source was multiplied by on the way.
    """

    source: ir.Value
    form: str
    heads: int
    repeats: int
    factor: float


def heads_of(value: ir.Value, perm: Sequence[int] = (0, 1, 2, 3)) -> Heads | None:
    """The farthest rows that heads are made of; None where the shape is unknown.

    Args:
        value: heads `[B, N, S, D]`, with their axes in another order.
        perm: that order.
    """
    shape = lengths_of(value.shape)
    if shape is None or len(shape) != 4 or None in shape:
        return None
    batch, count, length, width = (shape[list(perm).index(i)] for i in range(4))
    if not isinstance(count, int):
        return None
    found = None
    for origin in origins(value):
        for form, rank in (("joined", 3), ("rows", 4), ("heads", 4)):
            source = lengths_of(origin.source.shape)
            if source is None or len(source) != rank:
                continue
            front = equal(source[0], batch) and equal(source[1], length)
            if form != "heads" and batch != 1 and not front:
                continue  # an axis of length 1 lies anywhere, but rows have their batch in front
            for repeats in divisors(count):
                kept = count // repeats
                axes = usual(form, source, (batch, kept, length, width), repeats)
                if axes is not None and transposed(axes, perm) == origin.axes:
                    found = Heads(origin.source, form, kept, repeats, origin.factor)
                    break
            else:
                continue
            break
    return found


def divisors(count: int) -> list[int]:
    """Numbers that divide another, the largest first."""
    return [n for n in range(count, 0, -1) if count % n == 0]


def usual(form: str, source: Lengths, shape: Lengths, repeats: int) -> Axes | None:
    """The layout of heads made of rows in the usual way, each then repeated."""
    batch, heads, length, width = shape
    axes: Axes | None = untouched(source)
    if form == "joined" and axes is not None:
        axes = reshaped(axes, (batch, length, heads, width))
    if axes is not None and form != "heads":
        axes = transposed(axes, (0, 2, 1, 3))
    if axes is None or repeats == 1:
        return axes
    wide = (*axes[:2], (Part(None, 0, repeats),), *axes[2:])
    total = heads * repeats if isinstance(heads, int) else None
    return reshaped(wide, (batch, total, length, width))
