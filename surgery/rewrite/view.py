"""A graph as canonical text: one node per line, the same text for the same graph.

Values are numbered in order, module paths become sections, weights show name, dtype and shape,
and small constants their numbers. `diff -u` of two steps of a run shows what a pass did; texts
that share one `Names` give a value the same number.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from surgery.rewrite.matcher import constant
from surgery.rewrite.scope import scope

INLINE = 8
"""Most elements of a constant whose numbers are shown."""


class Names:
    """Gives each value name a number, in order of appearance, the same in every text."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def __call__(self, value: ir.Value) -> str:
        """The number of a value."""
        return self.numbers.setdefault(value.name or "", f"%{len(self.numbers)}")


def text(model: ir.Model, names: Names | None = None, types: bool = False) -> str:
    """The whole model as canonical text.

    Args:
        model: the graph.
        names: the numbers of earlier texts; by default numbering starts at 0.
        types: whether each node's line ends in the dtype and shape of its first output.
    """
    opsets = ", ".join(f"{domain or 'onnx'} {v}" for domain, v in model.opset_imports.items())
    lines = [f"opset {opsets}"]
    lines += [f"input  {v.name} {kind(v)}" for v in model.graph.inputs]
    lines += body(model.graph, {}, "", names, types)
    return "\n".join(lines) + "\n"


def body(
    graph: ir.Graph,
    known: dict[ir.Value, str],
    indent: str,
    names: Names | None = None,
    types: bool = False,
) -> Iterator[str]:
    """The lines of a graph; `known` holds the names of values of the graphs around it."""
    known = dict(known)
    for value in graph.inputs:
        known[value] = value.name or f"%{len(known)}"
    section = None
    for node in graph:
        module = scope(node)
        if module != section and not indent:
            section = module
            yield f"# {module or 'root'}"
        inputs = ", ".join(operand(v, known) for v in node.inputs)
        outputs = []
        for value in node.outputs:
            if value.is_graph_output():
                known[value] = value.name or ""
            elif not value.uses():
                known[value] = "_"
            else:
                known[value] = f"%{len(known)}" if names is None else names(value)
            outputs.append(known[value])
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        attributes = [f"{k}={attribute(a)}" for k, a in sorted(node.attributes.items()) if plain(a)]
        marks = f" {{{', '.join(attributes)}}}" if attributes else ""
        type_ = f" : {kind(node.outputs[0])}" if types and node.outputs else ""
        yield f"{indent}{', '.join(outputs)} = {op}({inputs}){marks}{type_}"
        for name, inner in node.attributes.items():
            if inner.type == ir.AttributeType.GRAPH:
                yield f"{indent}  {name}:"
                yield from body(inner.as_graph(), known, indent + "    ", names, types)
    for value in graph.outputs:
        yield f"{indent}output {known.get(value, value.name)} {kind(value)}"


def plain(attribute: ir.Attr) -> bool:
    """Whether an attribute fits on the node's line."""
    return attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def attribute(value: ir.Attr) -> str:
    """An attribute's value."""
    if value.type == ir.AttributeType.TENSOR:
        return array(np.asarray(value.as_tensor().numpy()))
    if value.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        numbers = np.atleast_1d(np.asarray(value.value, np.float32)).tolist()
        words = [f"{x:.7g}" for x in numbers]
        return words[0] if value.type == ir.AttributeType.FLOAT else f"[{', '.join(words)}]"
    return str(list(value.value) if isinstance(value.value, tuple) else value.value)


def operand(value: ir.Value | None, known: dict[ir.Value, str]) -> str:
    """An input: a renamed value, a constant's numbers, or a weight's name and type."""
    if value is None:
        return "-"
    if value in known:
        return known[value]
    numbers = constant(value)
    if numbers is not None and numbers.size <= INLINE:
        return array(numbers)
    return f"{value.name}:{kind(value)}"


def array(numbers: np.ndarray) -> str:
    """A small constant by its numbers, a large one by dtype and shape."""
    if numbers.size > INLINE:
        return f"{numbers.dtype}{list(numbers.shape)}"
    if numbers.dtype.kind == "f":
        words = [f"{x:.7g}" for x in numbers.astype(np.float32).ravel()]
    else:
        words = [str(x) for x in numbers.ravel().tolist()]
    return words[0] if numbers.ndim == 0 else f"[{', '.join(words)}]"


def kind(value: ir.Value) -> str:
    """Dtype and shape."""
    dtype = value.dtype.short_name() if value.dtype is not None else "?"
    dims = "?" if value.shape is None else ",".join(str(d) for d in value.shape)
    return f"{dtype}[{dims}]"


def diff(before: str, after: str, names: tuple[str, str] = ("before", "after")) -> str:
    """A unified diff of two canonical texts."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), *names
    )
    return "".join(lines)


def histogram(model: ir.Model) -> Counter[str]:
    """Nodes by op type, subgraphs included; `domain::op` outside ONNX's own domain."""
    return Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for graph in model.graphs()
        for node in graph
    )


def size(model: ir.Model) -> int:
    """Number of nodes, subgraphs included, `Constant` nodes not."""
    return sum(n for op, n in histogram(model).items() if op != "Constant")
