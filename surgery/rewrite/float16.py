"""Converts chosen nodes of a graph to float16, with casts where float32 begins and ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from surgery.rewrite.builder import initializer, names, unique
from surgery.rewrite.subgraphs import branches, captured
from surgery.rewrite.weights import Cast, RowTensor, narrow, numbers, set_source, source_of

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


class Float16Converter:
    """Converts nodes to float16 one by one; `finish` then restores float32 for other readers.

    Args:
        model: the graph, changed in place.
        maker: name of the pass, recorded on the casts.
    """

    def __init__(self, model: ir.Model, maker: str) -> None:
        self.graph, self.maker, self.taken = model.graph, maker, names(model)
        self.halves: dict[ir.Value, ir.Value] = {}
        """float16 forms of float32 values."""
        self.changed: list[ir.Value] = []
        """Values that are float16 now."""
        self.inner: set[ir.Graph] = set()
        """Branches that compute in float16 now."""

    def all_half(self, node: ir.Node) -> bool:
        """Whether a node reads float16 activations and no float32 ones."""
        floats = [v for v in node.inputs if v is not None and v.dtype in (F32, F16)]
        return bool(floats) and all(v.dtype == F16 for v in floats)

    def node(self, node: ir.Node) -> None:
        """Convert a node: its float32 inputs, its subgraphs and its outputs."""
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == F32:
                node.replace_input_with(i, self.half(value, node))
        for graph in branches(node):
            self.subgraph(graph, node)
            self.inner.add(graph)
        for value in node.outputs:
            if value.dtype == F32:
                value.dtype = F16
                self.changed.append(value)

    def subgraph(self, graph: ir.Graph, node: ir.Node) -> None:
        """Convert every value of a subgraph, and what it reads from outside."""
        for value in captured(graph):
            if value.dtype == F32:
                half = self.half(value, node)
                for use in list(value.uses()):
                    if use.node.graph is graph:
                        use.node.replace_input_with(use.idx, half)
        inner = [v for n in graph for v in n.outputs]
        for value in (*graph.inputs, *inner):
            if value.dtype == F32:
                value.dtype = F16

    def half(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """A float16 form of a float32 value: a weight stored in float16, or a cast."""
        if value in self.halves:
            return self.halves[value]
        if is_cache(value):
            value.dtype = F16
            return value
        if value.is_initializer():
            self.halves[value] = self.weight(value)
            return self.halves[value]
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            source = producer.inputs[0]
            if source.dtype == F16:
                return source
        self.halves[value] = self.cast(value, F16, before)
        return self.halves[value]

    def weight(self, value: ir.Value) -> ir.Value:
        """A weight in float16: the same initializer if nothing else reads it, else a copy."""
        source = source_of(value)
        if source is not None and len(value.uses()) == 1:
            set_source(value, Cast(narrow(source), F16))
            return value
        if isinstance(
            value.const_value, RowTensor
        ):  # scales: the pass that quantized chose their dtype
            return value
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        array = numbers(tensor).astype(np.float16)
        name = unique(f"{value.name}.half", self.taken)
        return initializer(self.graph, name, ir.tensor(array, name=name))

    def cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Insert a cast before a node."""
        name = unique(f"{value.name}.{dtype.short_name()}", self.taken)
        node = ir.node("Cast", [value], {"to": dtype}, name=name)
        node.metadata_props.update(before.metadata_props)
        node.metadata_props["surgery.pass"] = self.maker
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{name}_out", ir.TensorType(dtype), value.shape
        self.taken.add(out.name)
        self.graph.insert_before(before, node)
        return out

    def finish(self) -> None:
        """Cast back to float32 for readers not converted and for graph outputs but the cache."""
        for value in self.changed:
            needy = [use for use in value.uses() if not self.takes_half(use.node)]
            output = value.is_graph_output() and not is_cache(value)
            if not needy and not output:
                continue
            producer = value.producer()
            assert producer is not None
            following = next(iter(n for n in self.after(producer)), None)
            wide = self.widened(value, producer, following)
            for use in needy:
                use.node.replace_input_with(use.idx, wide)
            if output:
                index = self.graph.outputs.index(value)
                wide.name, value.name = value.name, unique(f"{value.name}.half", self.taken)
                self.graph.outputs[index] = wide

    def widened(self, value: ir.Value, producer: ir.Node, after: ir.Node | None) -> ir.Value:
        """A cast to float32, right after the node that computes the value."""
        anchor = after or producer
        wide = self.cast(value, F32, anchor)
        if after is None:
            node = wide.producer()
            assert node is not None
            self.graph.remove(node)
            self.graph.append(node)
        node = wide.producer()
        assert node is not None
        node.metadata_props.update(producer.metadata_props)
        return wide

    def after(self, node: ir.Node) -> Iterator[ir.Node]:
        """The node that follows a node in the graph, if any."""
        found = False
        for other in self.graph:
            if found:
                yield other
                return
            found = other is node

    def takes_half(self, node: ir.Node) -> bool:
        """Whether a reader was converted, or casts by itself."""
        if node.op_type == "Cast":
            return True
        if node.graph is not self.graph:
            return node.graph in self.inner
        return any(v.dtype == F16 for v in node.outputs)


def is_cache(value: ir.Value) -> bool:
    """Whether a value is a past or present key or value of the graph."""
    at_border = value.is_graph_input() or value.is_graph_output()
    return at_border and (value.name or "").startswith(("past_key_values.", "present."))
