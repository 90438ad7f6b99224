"""What differs between two steps of a graph, node by node, repeated layers folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite import view
from surgery.rewrite.scope import scope

STACK = re.compile(r"(?P<stack>.*?\w+)\.(?P<index>\d+)(?P<rest>\..*)?")
"""A module in a list of modules: the list, the index, the path inside."""

Unit = tuple[str, int]
"""A list of modules and an index in it; ("", 0) for what lies outside of any list."""

OUTSIDE: Unit = ("", 0)


@dataclass(frozen=True)
class Change:
    """A node that went, came, or reads something else now."""

    node: ir.Node
    sign: str
    """"-", "+" or "~": gone, new, rewired."""
    side: str
    """The graph that the node is of: "before" or "after". A rewired node is in both."""

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What is the same in units that changed alike."""
        return self.side, self.sign, self.node.op_type, self.module

    @property
    def module(self) -> str:
        """Path inside the unit."""
        match = STACK.fullmatch(scope(self.node))
        return (match["rest"] or "")[1:] if match else scope(self.node)


@dataclass(frozen=True)
class Group:
    """Units that changed alike.

    Attributes:
        stack: the list of modules, "" for what lies outside of any.
        units: indexes in it.
        changes: of each unit, in the order of the graphs.
    """

    stack: str
    units: tuple[int, ...]
    changes: tuple[tuple[Change, ...], ...]

    @property
    def title(self) -> str:
        """For people."""
        if not self.stack:
            return "outside of the layers"
        return f"{self.stack}.{spans(self.units)}"

    def side(self, side: str) -> list[Change]:
        """Changes of the first unit as one of the two graphs has them."""
        return [change for change in self.changes[0] if change.side == side]


def changes(before: ir.Model, after: ir.Model) -> list[Group]:
    """Groups of changes: layers first, those of most nodes first."""
    old, new = ({n.name or "": n for n in model.graph} for model in (before, after))
    found = [Change(node, "-", "before") for name, node in old.items() if name not in new]
    for name, node in new.items():
        if name not in old:
            found.append(Change(node, "+", "after"))
        elif signature(node) != signature(old[name]):
            found += [Change(old[name], "~", "before"), Change(node, "~", "after")]
    units: dict[Unit, list[Change]] = {}
    for change in found:
        if change.node.op_type != "Constant":
            units.setdefault(unit(change.node), []).append(change)
    return sorted(fold(units), key=lambda g: (not g.stack, -sum(map(len, g.changes))))


def fold(units: dict[Unit, list[Change]]) -> Iterable[Group]:
    """Units with the same changes as one group."""
    alike: dict[object, list[Unit]] = {}
    for key, members in units.items():
        what = tuple(sorted(c.kind for c in members))
        alike.setdefault((key[0], what), []).append(key)
    for keys in alike.values():
        keys.sort()
        indexes = tuple(index for _, index in keys)
        yield Group(keys[0][0], indexes, tuple(tuple(units[key]) for key in keys))


def unit(node: ir.Node) -> Unit:
    """The layer or block that a node belongs to."""
    match = STACK.fullmatch(scope(node))
    return (match["stack"], int(match["index"])) if match else OUTSIDE


def signature(node: ir.Node) -> tuple[object, ...]:
    """What a node is and reads."""
    attributes = tuple(
        (name, view.attribute(a)) for name, a in sorted(node.attributes.items()) if view.plain(a)
    )
    inputs = tuple(value.name if value is not None else None for value in node.inputs)
    return node.domain, node.op_type, inputs, attributes


def spans(numbers: Sequence[int]) -> str:
    """Numbers in a few words: "0, 2-5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def folded(text: str, groups: Iterable[Group]) -> list[str]:
    """The lines of a canonical text without the layers that another one stands for."""
    hidden = {(group.stack, index) for group in groups for index in group.units[1:] if group.stack}
    shown = {(group.stack, group.units[0]) for group in groups}
    hidden -= shown
    lines, keep = [], True
    for line in text.splitlines():
        if line.startswith("# "):
            match = STACK.fullmatch(line[2:])
            keep = match is None or (match["stack"], int(match["index"])) not in hidden
        if keep:
            lines.append(line)
    return lines
