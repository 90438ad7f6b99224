"""What nodes are computed from, and what is computed from them, through branches too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from surgery.rewrite.subgraphs import branches


def makers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes whose outputs a node reads, in its branches too."""
    inner = (deep for graph in branches(node) for deep in graph)
    for reader in (node, *inner):
        for value in reader.inputs:
            made = value.producer() if value is not None else None
            if made is not None:
                yield made


def above(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Nodes and all that they are computed from."""
    found, queue = set(nodes), list(nodes)
    while queue:
        fresh = set(makers(queue.pop())) - found
        found |= fresh
        queue += fresh
    return found


def owners(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """For each node inside a branch, the node of the graph that has the branch."""
    return {deep: node for node in graph for inner in branches(node) for deep in inner}


def users(value: ir.Value, owner: dict[ir.Node, ir.Node]) -> list[ir.Node]:
    """The nodes of the graph that read a value, themselves or in their branches."""
    return [owner.get(node, node) for node in value.consumers()]


def below(nodes: Iterable[ir.Node], owner: dict[ir.Node, ir.Node]) -> set[ir.Node]:
    """Nodes and all that is computed from them."""
    found, queue = set(nodes), list(nodes)
    while queue:
        fresh = {user for v in queue.pop().outputs for user in users(v, owner)} - found
        found |= fresh
        queue += fresh
    return found
