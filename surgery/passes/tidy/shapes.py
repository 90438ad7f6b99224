"""Shapes and dtypes that the exporter did not write down."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.match.shape_inference import annotate
from surgery.match.shape_rules import Known
from surgery.rewrite.builder import initializer, names, prune
from surgery.rewrite.contract import Pass, Site
from surgery.rewrite.matcher import constant


class Shapes(Pass):
    """Every value gets the shape and dtype that follow from the graph's inputs and weights.

    before  values without a shape, or with axes that have no name
    after   a number or an expression in the names of the graph's inputs for each axis, such as
            "past + sequence"; integers that follow from known lengths become initializers
    keeps   every result
    not     outputs of ops without a rule (those keep the exporter's own notes), lengths that depend
            on what a tensor holds
    why     heads, widths and equal lengths are read off shapes, and many exporters write none
    """

    name = "shapes"

    def sites(self, model: ir.Model) -> list[Site]:
        """Values whose shape, dtype or numbers are news."""
        copy = model.clone()
        return [Site(v.name or "", str(v.shape)) for v in work(copy)]

    def apply(self, model: ir.Model) -> int:
        """Write down what is known."""
        changed = work(model)
        if changed:
            prune(model)
        return len(changed)


def work(model: ir.Model) -> list[ir.Value]:
    """Write shapes and replace known integers; the values that changed."""
    taken = names(model)
    news, known = annotate(model)
    changed = dict.fromkeys(news)
    for graph in model.graphs():
        for node in list(graph):
            for value in node.outputs:
                if value in known and settled(graph, node, value, known[value], taken):
                    changed[value] = None
    return list(changed)


def settled(graph: ir.Graph, node: ir.Node, value: ir.Value, known: Known, taken: set[str]) -> bool:
    """Let readers of an integer that follows from known lengths read an initializer."""
    if node.op_type == "Constant" or not value.uses() or value.is_graph_output():
        return False
    if known.numbers is None or known.shape is None or known.dtype is None:
        return False
    if not known.dtype.is_integer() or not all(isinstance(n, int) for n in known.numbers):
        return False
    if constant(value) is not None or not all(isinstance(n, int) for n in known.shape):
        return False
    array = np.array(known.numbers, known.dtype.numpy())
    name = f"{value.name}.known"
    while name in taken:
        name += "_"
    taken.add(name)
    shape = tuple(int(n) for n in known.shape if isinstance(n, int))
    made = initializer(graph, name, ir.tensor(array.reshape(shape), name=name))
    value.replace_all_uses_with(made)
    return True
