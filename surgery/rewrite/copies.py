"""Copies of graphs that later passes on the original do not change."""

from __future__ import annotations

import onnx_ir as ir


def copied(model: ir.Model) -> ir.Model:
    """A clone whose values have types of their own; weights are shared.

    `ir.Model.clone` shares type objects, and setting the dtype of a value changes its type object.
    """
    copy = model.clone()
    for graph in copy.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        for value in (*values, *(v for node in graph for v in node.outputs)):
            if isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(value.type.dtype)
    return copy
