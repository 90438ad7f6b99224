"""Bring an older graph to the opset that passes expect, and infer missing shapes."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir
from onnxscript.version_converter import convert_version

from surgery.match.shape_inference import annotate

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
    annotate(model)
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
    values = (v for graph in model.graphs() for node in graph for v in node.outputs)
    noted = {value.name: (value.shape, value.type) for value in values}
    for value in (v for graph in converted.graphs() for n in graph for v in n.outputs):
        if not value.is_graph_output():  # the converter names every axis that it does not know
            value.shape, value.type = noted.get(value.name, (None, None))
    return converted
