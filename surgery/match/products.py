"""Products of activations with weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from surgery.rewrite.weights import Source, source_of, transposed


@dataclass(frozen=True)
class Product:
    """A product with a weight of the checkpoint.

    Attributes:
        node: MatMul(x, weight), or MatMul(x, Transpose(weight)).
        weight: the initializer.
        source: the weight as [N, K], K the width of x.
        turned: whether the initializer is stored as [K, N].
    """

    node: ir.Node
    weight: ir.Value
    source: Source
    turned: bool

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.weight.name or ""

    @property
    def input(self) -> str:
        """Name of x, [..., K]."""
        x = self.node.inputs[0]
        assert x is not None
        return x.name or ""

    def matrix(self) -> npt.NDArray[np.float32]:
        """The weight in float32, [N, K], contiguous."""
        (rows,) = self.source.read(0, self.source.parts[0][1][0])
        return np.ascontiguousarray(rows, np.float32)


def product_of(node: ir.Node) -> Product | None:
    """The product that a node is, or None."""
    if node.op_type != "MatMul" or node.domain or len(node.inputs) < 2:
        return None
    operand = node.inputs[1]
    made = operand.producer() if operand is not None else None
    turned = made is None
    weight = operand if made is None else made.inputs[0] if made.op_type == "Transpose" else None
    if weight is None or not weight.is_initializer() or len(weight.shape or ()) != 2:
        return None
    source = source_of(weight)
    if source is None:
        return None
    return Product(node, weight, transposed(source) if turned else source, turned)


def linear(model: ir.Model, skip: Callable[[str], bool]) -> list[Product]:
    """The products of a graph in order, but for those whose weights are to be skipped."""
    found = (product_of(node) for graph in model.graphs() for node in graph)
    return [product for product in found if product is not None and not skip(product.name)]
