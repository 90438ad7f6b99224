"""Past keys and values of a decoder: inputs that hold them, outputs that extend them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite.subgraphs import branches

APPENDING = {
    "GroupQueryAttention": (3, 4),
    "MultiHeadAttention": (6, 7),
    "Attention": (4, 5),
}
"""Ops that append to a cache: places of past keys and values among their inputs. The present ones
are outputs 1 and 2 of each."""
NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Cache:
    """Keys, or values, of a layer.

    Attributes:
        past: the graph input, `[B, K, P, D]`.
        present: the graph output, `[B, K, P + S, D]`.
        values: whether it holds values; None where only a Concat tells that it is a cache.
    """

    past: ir.Value
    present: ir.Value
    values: bool | None

    @property
    def grouped(self) -> bool:
        """Whether GroupQueryAttention alone reads the past.

        Only then may past and present share one buffer that is longer than both.
        """
        return {node.op_type for node in self.past.consumers()} == {"GroupQueryAttention"}


def caches(model: ir.Model) -> tuple[list[Cache], list[Cache]]:
    """The caches of keys and those of values, each in the order of the graph's inputs.

    Where no op tells keys from values, the inputs are taken in turn if their names can be numbered
    that way, and otherwise the first half as keys: runtimes treat both alike.
    """
    order = {value: place for place, value in enumerate(model.graph.inputs)}
    every = [cache for cache in map(extended, model.graph.outputs) if cache is not None]
    every.sort(key=lambda cache: order[cache.past])
    if None not in {cache.values for cache in every}:
        return [c for c in every if not c.values], [c for c in every if c.values]
    half = len(every) // 2
    if numbered([cache.past.name or "" for cache in every[::2]]) is not None:
        return every[::2], every[1::2]
    return every[:half], every[half:]


def extended(present: ir.Value) -> Cache | None:
    """The cache that an output is, if it extends a graph input of rank 4."""
    value = present
    while (node := value.producer()) is not None and node.op_type in ("Identity", "If"):
        if node.op_type == "If":  # both branches extend the same cache, as `long_input` makes them
            value = branches(node)[0].outputs[value.index() or 0]
        else:
            assert node.inputs[0] is not None
            value = node.inputs[0]
    if node is None:
        return None
    past: ir.Value | None = None
    values: bool | None = None
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) in (2, -2):
        past = node.inputs[0] if len(node.inputs) == 2 else None
    elif node.op_type in APPENDING and value.index() in (1, 2):
        values = value.index() == 2
        place = APPENDING[node.op_type][int(values)]
        past = node.inputs[place] if len(node.inputs) > place else None
    if past is None or not past.is_graph_input() or len(past.shape or ()) != 4:
        return None
    return Cache(past, present, values)


def numbered(names: Sequence[str]) -> str | None:
    """Names that differ in a number alone, 0, 1, 2 ... in order, as one name with %d; or None."""
    rows = [NUMBER.split(name) for name in names]
    if len({len(row) for row in rows}) != 1:
        return None
    columns = list(zip(*rows, strict=True))
    counts = tuple(str(i) for i in range(len(names)))
    for place in range(1, len(columns), 2):
        others = columns[:place] + columns[place + 1 :]
        if columns[place] == counts and all(len(set(column)) == 1 for column in others):
            return "".join([*rows[0][:place], "%d", *rows[0][place + 1 :]])
    return None
