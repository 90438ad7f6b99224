"""A graph cut where a single activation crosses, so that it runs a piece at a time.

An activation is a value that depends on a product with a weight. Between two layers of a
transformer exactly one crosses: the residual stream. Values that depend on graph inputs alone
(lengths, position ids, splits of an input) are computed again in every piece that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from surgery.match.mixtures import Mixture, mixture_of
from surgery.match.products import Product, product_of
from surgery.rewrite.subgraphs import branches, captured
from surgery.rewrite.weights import numbers

Array = npt.NDArray[Any]

LARGE = 1 << 16
"""Bytes of a constant from which on it is fed to a session instead of written into its graph."""


@dataclass(frozen=True)
class Piece:
    """A part of a graph between two single activations.

    Attributes:
        graph: the whole graph.
        enters: the activation that comes in; None for the first piece.
        leaves: the activation that goes out.
        products: in the order in which they run, but for those whose weights stay as they are.
        mixtures: of experts, in the order in which they run.
    """

    graph: ir.Graph
    enters: ir.Value | None
    leaves: ir.Value
    products: tuple[Product, ...]
    mixtures: tuple[Mixture, ...] = ()

    @cached_property
    def routed(self) -> tuple[str, ...]:
        """Names of what the mixtures read: inputs and the logits of routers."""
        return tuple(dict.fromkeys(name for one in self.mixtures for name in one.inputs))

    @cached_property
    def observed(self) -> tuple[str, ...]:
        """Names of the inputs of the products, each once."""
        return tuple(dict.fromkeys(product.input for product in self.products))

    @property
    def entering(self) -> str:
        """Name of the activation that comes in, "" for the first piece."""
        return self.enters.name or "" if self.enters is not None else ""

    @property
    def leaving(self) -> str:
        """Name of the activation that goes out."""
        return self.leaves.name or ""

    @cached_property
    def constants(self) -> dict[str, ir.TensorProtocol]:
        """Large initializers of the graph by name, but for the weights of the products."""
        weights = {product.name for product in self.products}
        return {
            name: value.const_value
            for name, value in self.graph.initializers.items()
            if value.const_value is not None
            and name not in weights
            and value.const_value.dtype != ir.DataType.BFLOAT16  # NumPy has none to feed
            and value.const_value.nbytes >= LARGE
        }

    @cached_property
    def ports(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the inputs and outputs of the session."""
        session = self.session
        return (
            frozenset(port.name for port in session.get_inputs()),
            frozenset(port.name for port in session.get_outputs()),
        )

    @cached_property
    def fixed(self) -> dict[str, Array]:
        """The large constants that the session reads."""
        return {
            name: np.ascontiguousarray(numbers(tensor))
            for name, tensor in self.constants.items()
            if name in self.ports[0]
        }

    def release(self) -> None:
        """Let go of the session and of all constants."""
        for name in ("session", "fixed"):
            vars(self).pop(name, None)

    @cached_property
    def session(self) -> ort.InferenceSession:
        """The piece in onnxruntime; weights and other large constants are inputs.

        A graph that held them would copy them twice, and may not be larger than 2 GB.
        """
        values = {value.name: value for node in self.graph for value in node.outputs}
        wanted = dict.fromkeys((self.leaving, *self.observed, *self.routed))
        outputs = [values[name] for name in wanted if name != self.entering and name in values]
        inputs = [value for value in self.graph.inputs if self.enters is not value]
        inputs += [self.enters] if self.enters is not None else []
        part = ir.convenience.extract(self.graph, inputs=inputs, outputs=outputs)
        fed = {product.name: ir.DataType.FLOAT for product in self.products}
        fed |= {name: ir.DataType(tensor.dtype) for name, tensor in self.constants.items()}
        for name, dtype in fed.items():
            if name in part.initializers:
                value = part.initializers.pop(name)
                value.const_value = None
                value.type = ir.TensorType(dtype)
                part.inputs.append(value)
        for value in list(part.inputs):
            if not value.uses() and not value.is_graph_output():
                part.inputs.remove(value)
        for value in part.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            array = np.array(numbers(tensor))
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
        for node in part:
            node.metadata_props.clear()
        part.opset_imports.update(self.graph.opset_imports)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # results, which outlive the session, would keep it
        model = ir.Model(part, ir_version=10)
        return ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(
        self, feeds: Mapping[str, Array], weights: Mapping[str, Array], *wanted: str
    ) -> list[Array]:
        """Run on one batch.

        Args:
            feeds: graph inputs, and the activation that comes in, by name.
            weights: float32 [N, K] by the name of the weight.
            wanted: names of values to return.
        """
        given = {product.name: weights[product.name] for product in self.products}
        for product in self.products:
            if product.turned:
                given[product.name] = given[product.name].T
        every = {**feeds, **given, **self.fixed}
        read, made = self.ports
        names = [name for name in wanted if name in made]
        results = self.session.run(names, {k: v for k, v in every.items() if k in read})
        found = dict(zip(names, results, strict=True))
        return [found[name] if name in found else every[name] for name in wanted]


def cut(model: ir.Model, last: ir.Value, skip: frozenset[str] = frozenset()) -> Iterator[Piece]:
    """The pieces of a graph up to a value, in order.

    Args:
        model: a graph in topological order.
        last: the value that the last piece makes, such as the input of the head.
        skip: weights that stay as they are, such as those of routers.
    """
    graph = model.graph
    order = {node: place for place, node in enumerate(graph)}
    end = order[node] if (node := last.producer()) is not None else 0
    active: set[ir.Value] = set()
    until: dict[ir.Value, int] = {}
    for node, place in order.items():
        read = [value for value in node.inputs if value is not None]
        read += [value for inner in branches(node) for value in captured(inner)]
        for value in read:
            if value in active:
                until[value] = place
        if product_of(node) is not None or any(value in active for value in read):
            active.update(node.outputs)
    until[last] = end + 1
    enters: ir.Value | None = None
    products: list[Product] = []
    mixtures: list[Mixture] = []
    alive: dict[ir.Value, int] = {}
    for node, place in order.items():
        if place > end:
            break
        found = product_of(node)
        if found is not None and found.name not in skip:
            products.append(found)
        mixture = mixture_of(node)
        if mixture is not None:
            mixtures.append(mixture)
        alive.update({v: until[v] for v in node.outputs if v in until})
        alive = {value: stop for value, stop in alive.items() if stop > place}
        if place == end or (len(alive) == 1 and (products or mixtures)):
            (leaves,) = alive if place < end else (last,)
            if leaves is enters and place < end:
                continue
            yield Piece(graph, enters, leaves, tuple(products), tuple(mixtures))
            enters, products, mixtures = leaves, [], []
