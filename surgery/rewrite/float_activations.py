"""A graph with quantized weights whose activations stay in float32, to compare with exactly.

Rounded activations jump by a whole step where two ways to compute the same differ in the last bit.
Checks that look for errors of 1e-5 therefore run graphs in this form.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.rewrite.builder import replace

LEVEL = "accuracy_level"
"""Attribute of ops with quantized weights that lets kernels round activations to int8."""
INTEGER = "MatMulIntegerToFloat"


def float_activations(model: ir.Model) -> None:
    """Change a graph in place: products take float32 activations, and weights as they are stored.

    An integer product between a QuantizeLinear of its rows and a Mul by their scales, as
    `matmul_int8` makes it, becomes MatMul with the codes in float32, and a Mul by their scales.
    (Of DequantizeLinear and MatMul, onnxruntime makes a product that rounds activations.) Integer
    products of other graphs stay as they are.
    """
    for graph in model.graphs():
        for node in list(graph):
            node.attributes.pop(LEVEL, None)
            found = rounded(node) if node.op_type == INTEGER else None
            if found is not None:
                in_float(node, *found)
    RemoveUnusedNodesPass()(model)


def rounded(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What an integer product rounds, `[M, K]`, and the result `[M, N]` behind the scales of rows.

    None where it is no product that `matmul_int8` makes.
    """
    if len(node.inputs) != 5 or node.inputs[0] is None or node.outputs[0].is_graph_output():
        return None
    made, readers = node.inputs[0].producer(), node.outputs[0].consumers()
    if made is None or made.op_type != "QuantizeLinear" or len(readers) != 1:
        return None
    x, scales = made.inputs[:2]
    column = readers[0].inputs[1] if readers[0].op_type == "Mul" else None
    unsqueeze = column.producer() if column is not None else None
    if x is None or unsqueeze is None or unsqueeze.inputs[0] is not scales:
        return None
    return x, readers[0].outputs[0]


def in_float(node: ir.Node, x: ir.Value, out: ir.Value) -> None:
    """Replace one integer product of x whose result is `out`."""
    _, weight, _, scales, _ = node.inputs
    assert weight is not None and isinstance(node.graph, ir.Graph)
    wide = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
    product = ir.node("MatMul", [x, wide.outputs[0]])
    scaled = ir.node("Mul", [product.outputs[0], scales])
    for made, shape in ((wide, weight.shape), (product, out.shape), (scaled, out.shape)):
        made.metadata_props.update(node.metadata_props)
        made.name = f"{node.name}/{made.op_type}"
        value = made.outputs[0]
        value.name, value.type, value.shape = made.name, ir.TensorType(ir.DataType.FLOAT), shape
    node.graph.insert_before(node, [wide, product, scaled])
    replace(out, scaled.outputs[0])
