"""Subgraphs of `If` and `Loop`: finding them, what they read from outside, building them."""

from __future__ import annotations

import onnx_ir as ir

from surgery.rewrite.builder import Builder


def branches(node: ir.Node) -> list[ir.Graph]:
    """Subgraphs of a node, nested ones included."""
    direct = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return direct + [deep for graph in direct for inner in graph for deep in branches(inner)]


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values from outside that a subgraph reads, each once."""
    own = {v for node in graph for v in node.outputs} | set(graph.inputs)
    own |= {v for node in graph for inner in branches(node) for v in inner.inputs}
    own |= {v for node in graph for g in branches(node) for n in g for v in n.outputs}
    read = [v for node in graph for v in node.inputs if v is not None]
    read += [v for node in graph for g in branches(node) for n in g for v in n.inputs if v]
    return [v for v in dict.fromkeys(read) if v not in own]


class SubgraphBuilder:
    """Builds a branch or loop body; its nodes carry the module path of the rewrite's anchor."""

    def __init__(self, add: Builder) -> None:
        self.add, self.nodes = add, list[ir.Node]()

    def __call__(
        self,
        op: str,
        inputs: list[ir.Value],
        attributes: dict[str, object] | None = None,
        domain: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """Add a node; returns its first output."""
        node = self.add.node(op, inputs, attributes, domain=domain)
        node.outputs[0].type = ir.TensorType(dtype)
        assert node.graph is not None
        node.graph.remove(node)
        self.nodes.append(node)
        return node.outputs[0]

    def graph(self, name: str, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Graph:
        """The finished graph of these nodes."""
        return ir.Graph(inputs, outputs, nodes=self.nodes, name=self.add.unique(name))
