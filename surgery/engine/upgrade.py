"""Bring an older graph to the opset that passes expect, and infer missing shapes."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir
from onnxscript.version_converter import convert_version

OPSET = 23
"""The first opset with `Attention`, which passes match."""
LOG = logging.getLogger(__name__)


def upgrade(model: ir.Model, weights: Path) -> ir.Model:
    """The graph at `OPSET`, if its ops can be converted, with all shapes that can be inferred.

    Args:
        model: a graph, which may be changed in place.
        weights: folder of its external data.
    """
    if model.opset_imports.get("", OPSET) < OPSET:
        model = newer(model)
    missing = [v for graph in model.graphs() for n in graph for v in n.outputs if vague(v)]
    if missing:
        infer(model, missing)
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, weights)
    return model


def newer(model: ir.Model) -> ir.Model:
    """The graph at `OPSET`, or unchanged if an op of it cannot be converted."""
    converted = model.clone()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns about every graph that needs the fallback
    try:
        convert_version(converted, OPSET, fallback=True)
    except Exception as e:  # the converters raise their own kinds
        LOG.debug("opset stays: %s", e)
        return model
    finally:
        logging.disable(level)
    if converted.opset_imports.get("") != OPSET:
        return model
    for value in (v for graph in converted.graphs() for n in graph for v in n.outputs):
        if not value.is_graph_output():
            value.shape = None  # the converter invents a name for every unknown dimension
    return converted


def vague(value: ir.Value) -> bool:
    """Whether a value has no shape, or a dimension without number or name."""
    if value.shape is None:
        return True
    return any(isinstance(d, ir.SymbolicDim) and d.value is None for d in value.shape)


def infer(model: ir.Model, values: list[ir.Value]) -> None:
    """Infer shapes of values with onnxruntime's symbolic shape inference."""
    # onnxruntime.tools imports torch where it is installed, which takes seconds
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    try:
        proto = SymbolicShapeInference.infer_shapes(ir.to_proto(model), auto_merge=False)
    except Exception as e:  # it fails on some graphs with errors of many kinds
        LOG.debug("shapes stay unknown: %s", e)
        return
    known = {info.name: info for info in (*proto.graph.value_info, *proto.graph.output)}
    for value in values:
        info = known.get(value.name or "")
        if info is None or not info.type.tensor_type.HasField("shape"):
            continue
        dims = info.type.tensor_type.shape.dim
        value.shape = ir.Shape([d.dim_value or d.dim_param or None for d in dims])
        if value.dtype is None and info.type.tensor_type.elem_type:
            value.type = ir.TensorType(ir.DataType(info.type.tensor_type.elem_type))
