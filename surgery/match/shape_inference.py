"""Shapes and dtypes of a whole graph, worked out op by op through the arithmetic on lengths."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import sympy

from surgery.match.lengths import Length, Lengths, equal, lengths_of, spelled
from surgery.match.shape_rules import MANY, NOTHING, RULES, Known
from surgery.rewrite.contract import GraphError
from surgery.rewrite.matcher import constant
from surgery.rewrite.scope import place

DOMAINS = ("", "ai.onnx", "com.microsoft")


def inferred(model: ir.Model) -> dict[ir.Value, Known]:
    """What is known of every value of a model, the exporter's own notes included."""
    found: dict[ir.Value, Known] = {}
    walk(model.graph, found)
    return found


def walk(graph: ir.Graph, found: dict[ir.Value, Known]) -> None:
    """Nodes in order; those of branches see what is known outside."""
    for value in (*graph.inputs, *graph.initializers.values()):
        found.setdefault(value, noted(value))
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                walk(attribute.as_graph(), found)
        for value, known in zip(node.outputs, results(node, found), strict=False):
            found[value] = merged(known, value)


def results(node: ir.Node, found: dict[ir.Value, Known]) -> list[Known]:
    """What a node gives, by its rule or by the exporter's notes alone."""
    given = [found.get(v) or noted(v) if v is not None else NOTHING for v in node.inputs]
    rule = RULES.get(node.op_type) if node.domain in DOMAINS else None
    if node.op_type == "Constant":
        return [noted(node.outputs[0])]
    if node.op_type == "If":
        return branches(node, found)
    if rule is None or not given:
        return [NOTHING] * len(node.outputs)
    try:
        return list(rule(node, given))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise GraphError(
            f"{place(node)}: {node.op_type} cannot run on its inputs, of shapes "
            f"{', '.join(map(shape_text, given))}."
        ) from e


def shape_text(known: Known) -> str:
    """A shape, for a message."""
    lengths = ("?" if n is None else str(n) for n in known.shape or ())
    return "?" if known.shape is None else f"[{', '.join(lengths)}]"


def branches(node: ir.Node, found: dict[ir.Value, Known]) -> list[Known]:
    """What both branches of an `If` agree on."""
    ends = [
        [found.get(v, NOTHING) for v in node.attributes[name].as_graph().outputs]
        for name in ("then_branch", "else_branch")
    ]
    out = []
    for a, b in zip(*ends, strict=True):
        shape: Lengths | None = None
        if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
            pairs = zip(a.shape, b.shape, strict=True)
            shape = tuple(x if equal(x, y) else None for x, y in pairs)
        out.append(Known(shape, a.dtype if a.dtype == b.dtype else None))
    return out


def noted(value: ir.Value) -> Known:
    """What a value says of itself: its type, and what it holds where it is a small constant."""
    numbers: tuple[Length, ...] | None = None
    array = constant(value)
    shape, dtype = lengths_of(value.shape), value.dtype
    if array is not None:
        shape, dtype = array.shape, dtype or ir.DataType.from_numpy(array.dtype)
        whole = array.dtype.kind in "iub" and array.ndim < 2 and array.size <= MANY
        numbers = tuple(int(n) for n in np.ravel(array)) if whole else None
    return Known(shape, dtype, numbers)


def merged(known: Known, value: ir.Value) -> Known:
    """A rule's answer, completed by the exporter's notes: those give the numbers of an axis."""
    note = noted(value)
    if known.shape is None:
        shape = note.shape
    elif note.shape is None or len(note.shape) != len(known.shape):
        shape = known.shape
    else:
        pairs = zip(known.shape, note.shape, strict=True)
        shape = tuple(better(a, b) for a, b in pairs)
    return Known(shape, known.dtype or note.dtype, known.numbers)


def better(ours: Length, theirs: Length) -> Length:
    """The one of two answers that says more."""
    if ours is None:
        return theirs
    return theirs if isinstance(theirs, int) and not isinstance(ours, int) else ours


def annotate(model: ir.Model) -> tuple[list[ir.Value], dict[ir.Value, Known]]:
    """Let every value say what is known of it.

    Where the exporter gave a length that we know as an expression a name of its own, as for the
    cache and the mask, that name stands for the expression everywhere.

    Returns:
        The values for which that is news, and what is known.
    """
    known = inferred(model)
    nodes = [node for graph in model.graphs() for node in graph]
    found = [(v, known[v]) for node in nodes for v in node.outputs if v in known]
    aliases: dict[Length, Length] = {}
    for value, fact in found:
        for ours, theirs in zip(fact.shape or (), lengths_of(value.shape) or (), strict=False):
            if isinstance(theirs, sympy.Symbol) and isinstance(ours, sympy.Add):
                aliases.setdefault(ours, theirs)
    return [value for value, fact in found if write(value, fact, aliases)], known


def write(value: ir.Value, known: Known, aliases: dict[Length, Length]) -> bool:
    """Let a value say what is known of it; returns whether that is news."""
    changed = False
    if known.dtype is not None and value.dtype is None:
        value.type, changed = ir.TensorType(known.dtype), True
    if known.shape is None:
        return changed
    shape = ir.Shape([spelled(aliases.get(length, length)) for length in known.shape])
    if value.shape is None or value.shape != shape:
        value.shape, changed = shape, True
    return changed
