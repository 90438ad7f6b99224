"""Load graphs from files: of a raw export, or of any exporter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from surgery.base.errors import PackageError, UserError
from surgery.engine.admission import read_model
from surgery.engine.upgrade import upgrade
from surgery.rewrite.matcher import LARGEST_CONSTANT
from surgery.rewrite.weights import Inline, RowTensor, numbers

WEIGHT = 1024
"""Fewest bytes of a float initializer that counts as a weight, which passes never read."""


def load(path: Path, weights: Path | None = None) -> ir.Model:
    """Load a graph; its weights stay in their files.

    Args:
        path: an ONNX file.
        weights: folder of its external data; its own by default.

    Raises:
        PackageError: no such file, or no ONNX graph in it.
    """
    model = read_model(path, own_data=weights is None)
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, weights or path.parent)
    return model


def load_any(path: Path, weights: Path | None = None, weight: int = WEIGHT) -> ir.Model:
    """Load a graph of any exporter, in the form that the passes expect.

    Local functions are inlined, its opset is raised to the one that has `Attention`, unknown
    shapes are inferred, constants become initializers, small ones in data files are read, and large
    initializers of floats become weights, which passes wrap and never read.

    Args:
        path: an ONNX file.
        weights: folder of its external data; its own by default.
        weight: fewest bytes of a float initializer that is treated as a weight.

    Raises:
        PackageError: no such file, or no ONNX graph in it.
    """
    model = load(path, weights)
    if model.functions:
        common.InlinePass()(model)
    near(model, weight)
    model = upgrade(model, weights or path.parent)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor):
                continue
            if tensor.dtype.is_floating_point() and tensor.nbytes >= weight:
                value.const_value = RowTensor(Inline(tensor), name=value.name or "")
    return model


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every error name the graph that it is about."""
    try:
        yield
    except Exception as e:
        if str(path) not in str(e):
            e.add_note(str(path))
        raise


def near(model: ir.Model, weight: int) -> None:
    """Read constants that lie in data files: those of few bytes, and integers for matching.

    torch's own saver writes every tensor of more than 256 bytes into a data file, frequencies of
    rotary embeddings among them.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            whole = not tensor.dtype.is_floating_point() and tensor.size <= LARGEST_CONSTANT
            if whole or tensor.nbytes < weight:
                array = np.array(numbers(tensor))
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)


def graph_files(source: Path) -> list[Path]:
    """The ONNX files of a path: the file itself, or all files of a folder.

    Raises:
        UserError: there is none.
    """
    if source.is_dir():
        found = sorted(source.glob("*.onnx"))
        if not found:
            raise UserError(f"{source}: no .onnx file in this folder.")
        return found
    if not source.is_file():
        raise PackageError(f"{source}: no such file.")
    return [source]
