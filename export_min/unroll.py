"""Copy the layers of a short trace, so that equal layers are traced only once.

Tracing takes about two seconds per layer, and many layers of a stack differ only in the names of
their weights. The trace therefore holds one layer of each kind, for example one for each DeepStack
level and a plain one, and `unroll` copies it to every position that has a layer of this kind. The
result is the graph of a full trace; `tests/export_min/test_unroll.py` compares the two.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from export_min.families import Stack
from surgery.base.metadata import SCOPES


def unroll(model: ir.Model, layers: Stack) -> None:
    """Turn the layers of a short trace into all layers of the stack, in place.

    A traced layer that occurs once in the stack is kept and renamed. One that occurs more than
    once is a template: it is copied to each of its positions and then removed. The last traced
    layer is always a template.
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
    spare = len(order) + len(traced)  # indexes from here on clash with no final name
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
    """Move constants to the front. A trace puts each into the first layer that reads it."""
    constants = [node for node in graph if node.op_type == "Constant"]
    graph.remove(constants)
    graph.insert_before(graph[0], constants)


def region(graph: ir.Graph, module: str) -> list[ir.Node]:
    """Return the nodes that were traced inside a module, in order, without constants."""
    return [
        node
        for node in graph
        if node.op_type != "Constant" and f"'{module}'" in node.metadata_props.get(SCOPES, "")
    ]


def entry(nodes: Sequence[ir.Node]) -> ir.Value:
    """Return the hidden state that enters a layer: the first value that it reads."""
    return reads(nodes)[0]


def reads(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Return the values from outside that `nodes` read, without weights and constants."""
    own = set(nodes)
    values = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
    return [v for v in values if not is_constant(v) and v.producer() not in own]


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is an initializer or the output of a `Constant`."""
    made = value.producer()
    return value.is_initializer() or (made is not None and made.op_type == "Constant")


def leaving(nodes: Sequence[ir.Node]) -> ir.Value:
    """Return the hidden state that leaves a layer: its one output that other nodes read."""
    own = set(nodes)
    (value,) = [
        v for node in nodes for v in node.outputs if any(use.node not in own for use in v.uses())
    ]
    return value


def renamer(stack: str, old: int) -> Callable[[str, int], str]:
    """Return a function that replaces layer index `old` in a name by another index."""
    pattern = re.compile(rf"{re.escape(stack)}\.{old}(?!\d)")
    return lambda text, new: pattern.sub(f"{stack}.{new}", text)


def rename(graph: ir.Graph, nodes: Iterable[ir.Node], stack: str, old: int, new: int) -> None:
    """Change the index of a layer in the names of its weights and the scopes of its nodes."""
    moved = renamer(stack, old)
    for node in nodes:
        node.metadata_props.update({k: moved(v, new) for k, v in node.metadata_props.items()})
    for name in [name for name in graph.initializers if moved(name, new) != name]:
        value = graph.initializers.pop(name)
        value.name = moved(name, new)
        graph.initializers[value.name] = value


class Template:
    """A layer of a short trace that is copied to its positions in the stack, then removed."""

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
        """Return the name of another layer's graph input or output: `present.7.key` for layer 7."""
        return name.replace(f".{self.index}.", f".{layer}.")

    def copy(self, layer: int, hidden: ir.Value, before: ir.Node) -> ir.Value:
        """Insert a copy as layer `layer` before a node and return the hidden state that leaves it.

        Args:
            layer: index of the new layer.
            hidden: the hidden state that enters it.
            before: the node to insert it before.
        """
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
        """Remove the template from the graph, with its weights, graph inputs and graph outputs."""
        for value in self.outputs:
            self.graph.outputs.remove(value)
        self.graph.remove(self.nodes, safe=True)
        for value in self.inputs:
            self.graph.inputs.remove(value)
        for value in self.weights:
            del self.graph.initializers[value.name or ""]


def like(value: ir.Value, name: str) -> ir.Value:
    """Return a new value with the type, shape and constant of `value` and another name."""
    assert value.dtype is not None
    return ir.Value(
        name=name,
        type=ir.TensorType(
            value.dtype
        ),  # a new object, because setting a value's dtype changes its type in place
        shape=value.shape,
        const_value=value.const_value,
    )
