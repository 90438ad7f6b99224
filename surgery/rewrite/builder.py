"""Edits of a graph: add nodes and initializers, redirect readers, remove dead nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.rewrite.scope import scope


class Builder:
    """Adds the nodes of a rewrite: before the anchor, with its module path, under unique names."""

    def __init__(
        self, maker: str, anchor: ir.Node, taken: set[str], main: ir.Graph | None = None
    ) -> None:
        assert anchor.graph is not None
        assert isinstance(anchor.graph, ir.Graph)
        self.graph = anchor.graph
        self.main = main or anchor.graph
        """The graph of the model, where weights go: branches may share them."""
        self.maker, self.anchor, self.taken = maker, anchor, taken
        self.before = anchor
        """New nodes go before this node; a rewrite sets another one where needed."""

    def __call__(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType | None = None,
        shape: Sequence[Any] | ir.Shape | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Insert a node and return its first output.

        Args:
            op: op type.
            inputs: values; None for an optional one left out.
            attributes: Python values.
            domain: op domain, "" for ONNX's own.
            outputs: number of outputs.
            dtype: of the first output.
            shape: of the first output.
            like: a value whose dtype and shape the first output has.
        """
        node = self.node(op, inputs, attributes, domain=domain, outputs=outputs)
        first = node.outputs[0]
        if like is not None:
            dtype, shape = dtype or like.dtype, shape if shape is not None else like.shape
        if dtype is not None:
            first.type = ir.TensorType(dtype)
        if shape is not None:
            first.shape = ir.Shape(shape)
        return first

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """Insert a node and return it."""
        module = scope(self.anchor)
        name = self.unique(f"{module}/{op}" if module else f"{self.maker}/{op}")
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        node.metadata_props.update(self.anchor.metadata_props)
        node.metadata_props["surgery.pass"] = self.maker
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        for i, value in enumerate(node.outputs):
            value.name = self.unique(f"{name}_{i}" if i else f"{name}_out")
        self.graph.insert_before(self.before, node)
        return node

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initializer; one with the same name and numbers is reused."""
        known = self.graph.initializers.get(name)
        if known is not None and isinstance(known.const_value, ir.Tensor):
            same = known.const_value.numpy()
            if same.dtype == array.dtype and np.array_equal(same, array):
                return known
        name = self.unique(name)
        return initializer(self.graph, name, ir.tensor(array, name=name))

    def unique(self, name: str) -> str:
        """The name, followed by a number if it is taken."""
        return unique(name, self.taken)


def unique(name: str, taken: set[str]) -> str:
    """The name, followed by a number if it is taken; it is taken from now on."""
    candidate, n = name, 1
    while candidate in taken:
        n += 1
        candidate = f"{name}.{n}"
    taken.add(candidate)
    return candidate


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer of `graph`."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def names(model: ir.Model) -> set[str]:
    """Every node and value name in a model."""
    found: set[str] = set()
    for graph in model.graphs():
        found.update(v.name or "" for v in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            found.add(node.name or "")
            found.update(v.name or "" for v in node.outputs)
    return found


def prune(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    RemoveUnusedNodesPass()(model)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; a graph output keeps its name."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}.replaced"
        new.name = name
        new.shape, new.type = new.shape or old.shape, new.type or old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
