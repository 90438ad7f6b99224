"""Draw part of a graph: some nodes, their producers and their consumers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from surgery.rewrite import view
from surgery.rewrite.scope import place
from surgery.rewrite.weights import RowTensor
from surgery.show.draw import Box, svg

LARGEST = 70
"""Largest number of nodes in a drawing. More would not be readable."""

LETTERS = {"batch": "B", "sequence": "S", "past": "P", "total": "T", "patches": "N", "floor": ""}
"""Letters for the names of dimensions, as in the docstrings of `export_min`."""


def draw(nodes: Sequence[ir.Node], kinds: dict[str, str] | None = None, title: str = "") -> str:
    """Draw nodes and their neighbours as SVG.

    Args:
        nodes: nodes of one graph. The first `LARGEST` are drawn.
        kinds: CSS classes by node name. Neighbours are drawn pale. Neighbours of a "touched" node
            are left out, because such a node borders on the change itself.
        title: text for screen readers.
    """
    kinds = kinds or {}
    chosen = list(nodes)[:LARGEST]
    core = [node for node in chosen if kinds.get(node.name or "") != "touched"] or chosen
    boxes: dict[str, Box] = {}
    for node in dict.fromkeys([*chosen, *neighbours(core)]):
        kind = kinds.get(node.name or "", "same" if node in chosen else "far")
        sub = "" if kind == "far" else caption(node)
        boxes[node.name or ""] = Box(node.op_type, sub, kind, hint(node))
    edges = []
    for node in chosen:
        for value in reads(node):
            edges += link(value, node, boxes, node in core)
        for value in node.outputs:
            if node in core and value.is_graph_output():
                boxes[f"out {value.name}"] = ending(value)
                edges.append((node.name or "", f"out {value.name}"))
            edges += [
                (node.name or "", reader.name or "")
                for reader in value.consumers()
                if reader.name in boxes
            ]
    return svg(boxes, edges, title)


def reads(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, including those that its subgraphs read from outside."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            made = {*inner.inputs, *(value for other in inner for value in other.outputs)}
            found += [v for other in inner for v in reads(other) if v not in made]
    return list(dict.fromkeys(found))


def link(
    value: ir.Value, node: ir.Node, boxes: dict[str, Box], inputs: bool
) -> list[tuple[str, str]]:
    """Return the edge to `node` from the producer of `value`, or from a graph input.

    Args:
        value: an input of the node.
        node: the node.
        boxes: the boxes so far. A box for a graph input is added here.
        inputs: whether graph inputs are drawn.
    """
    made = value.producer()
    if made is not None and made.name in boxes:
        return [(made.name or "", node.name or "")]
    if inputs and value.is_graph_input() and not value.is_initializer():
        boxes.setdefault(f"in {value.name}", ending(value))
        return [(f"in {value.name}", node.name or "")]
    return []


def ending(value: ir.Value) -> Box:
    """Return the box of a graph input or graph output."""
    name = (value.name or "").replace("past_key_values.", "past.")
    return Box(name, kind="value", hint=f"{value.name} {view.kind(value)}")


def neighbours(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Return producers and consumers of the given nodes in order, without constants."""
    inside = set(nodes)
    found: dict[ir.Node, None] = {}
    for node in inside_order(inside):
        made = [value.producer() for value in reads(node)]
        read = [reader for value in node.outputs for reader in value.consumers()[:3]]
        for other in (*made, *read):
            fits = other is not None and other.op_type != "Constant" and other not in inside
            if fits and other is not None and other.graph is node.graph:
                found[other] = None
    return list(found)


def inside_order(nodes: set[ir.Node]) -> list[ir.Node]:
    """Return a set of nodes in the order of their graph."""
    graphs = {node.graph: None for node in nodes}
    return [node for graph in graphs if graph is not None for node in graph if node in nodes]


def caption(node: ir.Node) -> str:
    """Return one line about a node: its weight, or dtype and shape of its first output."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and is_weight(value):
            tail = ".".join((value.name or "").split(".")[-2:])
            return f"{tail} {short(value)}"
    first = node.outputs[0] if node.outputs else None
    return short(first) if first is not None and first.shape is not None else ""


def short(value: ir.Value) -> str:
    """Return dtype and shape as text, with letters for known dimensions."""
    words = {**LETTERS, "None": "?"}
    return re.sub(r"[A-Za-z_]\w*", lambda m: words.get(m[0], m[0]), view.kind(value)).replace(
        " ", ""
    )


def is_weight(value: ir.Value) -> bool:
    """Return whether an initializer is a weight rather than a small constant."""
    return isinstance(value.const_value, RowTensor | ir.ExternalTensor)


def hint(node: ir.Node) -> str:
    """Return the tooltip of a node: name, module, attributes and outputs."""
    attributes = [
        f"{name} = {view.attribute(a)}" for name, a in node.attributes.items() if view.plain(a)
    ]
    out = [f"{value.name} {view.kind(value)}" for value in node.outputs]
    return "\n".join([f"{node.op_type} {node.name}", place(node), *attributes, *out])
