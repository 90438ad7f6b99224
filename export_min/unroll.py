"""Trace a few layers, write out all: layers that are the same are not traced again and again.

Tracing costs about two seconds a layer, and the layers of a stack differ only in the names of
their weights. So the trace holds one layer of each kind (one for each DeepStack level, say, and a
plain one), and `unroll` copies it to wherever the checkpoint has that kind. The outcome is the
graph of a full trace; `tests/export_min/test_unroll.py` compares the two.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from export_min.families import Stack

SCOPES = "pkg.torch.onnx.name_scopes"


def unroll(model: ir.Model, layers: Stack) -> None:
    """Arrange the layers of a short trace, in place.

    A traced layer that stands for one layer alone stays, with all that the graph makes of it. One
    that stands for several, and the last in any case, is a template: copied to its places, then
    removed.
    """
    stack, order, traced = layers.module, layers.order, range(layers.traced)
    if list(order) == list(traced):
        return
    graph, last = model.graph, traced[-1]
    hoist_constants(graph)
    regions = [region(graph, f"{stack}.{i}") for i in traced]
    entries = [entry(nodes) for nodes in regions]
    end = leaving(regions[last])
    tail = [use for use in end.uses() if use.node not in set(regions[last])]
    spare = len(order) + len(traced)  # out of the way of every final name
    for kind in traced:
        rename(graph, regions[kind], stack, kind, spare + kind)
    templates = {
        kind: Template(
            graph, renamer(stack, spare + kind), kind, regions[kind], entries[kind],
            leaving(regions[kind]),
        )
        for kind in traced
        if kind == last or list(order).count(kind) != 1
    }  # fmt: skip

    hidden = entries[0]
    for layer, kind in enumerate(order):
        if kind in templates:
            later = [k for k in order[layer:] if k not in templates]
            anchor = regions[later[0] if later else last][0]
            hidden = templates[kind].copy(layer, hidden, anchor)
        else:
            rename(graph, regions[kind], stack, spare + kind, layer)
            own = set(regions[kind])
            for use in list(entries[kind].uses()):
                if use.node in own:
                    use.node.replace_input_with(use.idx, hidden)
            hidden = entries[kind + 1]
    for use in tail:
        use.node.replace_input_with(use.idx, hidden)
    for kind in reversed(templates):
        templates[kind].remove()


def hoist_constants(graph: ir.Graph) -> None:
    """Move constants to the front: a trace makes each in the first layer that reads it."""
    constants = [node for node in graph if node.op_type == "Constant"]
    graph.remove(constants)
    graph.insert_before(graph[0], constants)


def region(graph: ir.Graph, module: str) -> list[ir.Node]:
    """The nodes traced inside a module, in order, constants aside."""
    return [
        node
        for node in graph
        if node.op_type != "Constant" and f"'{module}'" in node.metadata_props.get(SCOPES, "")
    ]


def entry(nodes: Sequence[ir.Node]) -> ir.Value:
    """The hidden state that enters a layer: what its first node reads."""
    return reads(nodes)[0]


def reads(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Values from elsewhere that `nodes` read, weights and constants aside, each once."""
    own = set(nodes)
    values = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
    return [v for v in values if not is_constant(v) and v.producer() not in own]


def is_constant(value: ir.Value) -> bool:
    """Whether a value is a weight or the output of a `Constant`."""
    made = value.producer()
    return value.is_initializer() or (made is not None and made.op_type == "Constant")


def leaving(nodes: Sequence[ir.Node]) -> ir.Value:
    """The hidden state that leaves a layer: what the graph reads of it."""
    own = set(nodes)
    (value,) = [
        v for node in nodes for v in node.outputs if any(use.node not in own for use in v.uses())
    ]
    return value


def renamer(stack: str, old: int) -> Callable[[str, int], str]:
    """A function that moves a name from layer `old` to another layer of the stack."""
    pattern = re.compile(rf"{re.escape(stack)}\.{old}(?!\d)")
    return lambda text, new: pattern.sub(f"{stack}.{new}", text)


def rename(graph: ir.Graph, nodes: Iterable[ir.Node], stack: str, old: int, new: int) -> None:
    """Move a layer that stays: its weights' names and its nodes' scopes."""
    moved = renamer(stack, old)
    for node in nodes:
        node.metadata_props.update({k: moved(v, new) for k, v in node.metadata_props.items()})
    for name in [name for name in graph.initializers if moved(name, new) != name]:
        value = graph.initializers.pop(name)
        value.name = moved(name, new)
        graph.initializers[value.name] = value


class Template:
    """A layer of a short trace that stands for several: a thing to copy, then to remove."""

    def __init__(
        self,
        graph: ir.Graph,
        moved: Callable[[str, int], str],
        index: int,
        nodes: Sequence[ir.Node],
        entry: ir.Value,
        end: ir.Value,
    ) -> None:
        self.graph, self.moved, self.index, self.nodes = graph, moved, index, nodes
        self.entry, self.end = entry, end
        read = {v for node in nodes for v in node.inputs if v is not None}
        made = {v for node in nodes for v in node.outputs}
        self.weights = [v for k, v in graph.initializers.items() if moved(k, -1) != k]
        self.inputs = [v for v in graph.inputs if v in read and f".{index}." in (v.name or "")]
        self.outputs = [v for v in graph.outputs if v in made]

    def port(self, name: str, layer: int) -> str:
        """A graph input or output of another layer: `present.3.key` to `present.7.key`."""
        return name.replace(f".{self.index}.", f".{layer}.")

    def copy(self, layer: int, hidden: ir.Value, before: ir.Node) -> ir.Value:
        """Insert a copy as `layer` before a node; returns the hidden state that leaves it."""
        values = {self.entry: hidden}
        for value in self.weights:
            values[value] = like(value, self.moved(value.name or "", layer))
            self.graph.register_initializer(values[value])
        for value in self.inputs:
            values[value] = like(value, self.port(value.name or "", layer))
            self.graph.inputs.append(values[value])
        for node in self.nodes:
            twin = ir.Node(
                node.domain,
                node.op_type,
                [v if v is None else values.get(v, v) for v in node.inputs],
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=f"{node.name}.{layer}",
                metadata_props={k: self.moved(v, layer) for k, v in node.metadata_props.items()},
            )
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                name = old.name or ""
                new.name = self.port(name, layer) if old in self.outputs else f"{name}.{layer}"
                new.type, new.shape = copy.copy(old.type), old.shape
                values[old] = new
            self.graph.insert_before(before, twin)
        self.graph.outputs.extend(values[value] for value in self.outputs)
        return values[self.end]

    def remove(self) -> None:
        """Take the template out of the graph, with its weights, inputs and outputs."""
        for value in self.outputs:
            self.graph.outputs.remove(value)
        self.graph.remove(self.nodes, safe=True)
        for value in self.inputs:
            self.graph.inputs.remove(value)
        for value in self.weights:
            del self.graph.initializers[value.name or ""]


def like(value: ir.Value, name: str) -> ir.Value:
    """A value of the same type, shape and constant under another name."""
    assert value.dtype is not None
    return ir.Value(
        name=name,
        type=ir.TensorType(value.dtype),  # its own: setting a value's dtype changes its type
        shape=value.shape,
        const_value=value.const_value,
    )
