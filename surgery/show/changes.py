"""Compare two steps of a graph node by node, and group layers that changed in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from surgery.rewrite import view
from surgery.rewrite.scope import scope

STACK = re.compile(r"(?P<stack>.*?\w+)\.(?P<index>\d+)(?P<rest>\..*)?")
"""Path of a module inside a list of modules: path of the list, index, path inside the element."""

Unit = tuple[str, int]
"""Path of a list of modules and an index in it, or ("", 0) for nodes outside of any list."""

OUTSIDE: Unit = ("", 0)


@dataclass(frozen=True)
class Change:
    """A node that was removed, added or rewired."""

    node: ir.Node
    sign: str
    """"-" removed, "+" added, "~" other inputs or attributes."""
    side: str
    """Graph of the node: "before" or "after". A rewired node has a change for each."""

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """Key by which changes of different units are compared."""
        return self.side, self.sign, self.node.op_type, self.module

    @property
    def module(self) -> str:
        """Path of the node's module inside the unit."""
        match = STACK.fullmatch(scope(self.node))
        return (match["rest"] or "")[1:] if match else scope(self.node)


@dataclass(frozen=True)
class Group:
    """Units, such as decoder layers, that changed in the same way.

    Attributes:
        stack: path of the list of modules, or "" for nodes outside of any list.
        units: indexes in the list.
        changes: the changes of each unit, in the order of the graphs.
    """

    stack: str
    units: tuple[int, ...]
    changes: tuple[tuple[Change, ...], ...]

    @property
    def title(self) -> str:
        """Heading of the group."""
        if not self.stack:
            return "outside of the layers"
        return f"{self.stack}.{spans(self.units)}"

    def side(self, side: str) -> list[Change]:
        """Return the changes of the first unit in the graph "before" or "after"."""
        return [change for change in self.changes[0] if change.side == side]


def changes(before: ir.Model, after: ir.Model) -> list[Group]:
    """Return the groups of changes: layers first, then by falling number of changes."""
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
    """Put units with the same changes into one group."""
    alike: dict[object, list[Unit]] = {}
    for key, members in units.items():
        what = tuple(sorted(c.kind for c in members))
        alike.setdefault((key[0], what), []).append(key)
    for keys in alike.values():
        keys.sort()
        indexes = tuple(index for _, index in keys)
        yield Group(keys[0][0], indexes, tuple(tuple(units[key]) for key in keys))


def unit(node: ir.Node) -> Unit:
    """Return the layer or block that a node belongs to."""
    match = STACK.fullmatch(scope(node))
    return (match["stack"], int(match["index"])) if match else OUTSIDE


def signature(node: ir.Node) -> tuple[object, ...]:
    """Return op type, inputs and attributes of a node, which are equal if it is unchanged."""
    attributes = tuple(
        (name, view.attribute(a)) for name, a in sorted(node.attributes.items()) if view.plain(a)
    )
    inputs = tuple(value.name if value is not None else None for value in node.inputs)
    return node.domain, node.op_type, inputs, attributes


def spans(numbers: Sequence[int]) -> str:
    """Write rising numbers as ranges: "0, 2-5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def folded(text: str, groups: Iterable[Group]) -> list[str]:
    """Return the lines of a canonical text with only the first unit of each group."""
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
