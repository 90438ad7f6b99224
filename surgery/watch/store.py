"""Store the graphs of all steps of a run without storing any weight twice.

A weight that passes transformed (cast, transposed, quantized) is computed once, a few rows at a
time, and goes to one data file that all steps share. A weight that is unchanged stays in the
checkpoint, behind a symbolic link beside the graphs. `surgery.load` and Netron follow such a link.
onnxruntime follows no link out of the folder of a graph, so these weights can be copied instead.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.package.external_data import Layout, external, row_tensor, tasks
from surgery.rewrite.weights import Reshaped, RowTensor, Source, Stored

DATA = "weights.data"
"""Name of the data file."""


class Weights(enum.Enum):
    """How weights are stored when a graph is saved."""

    LINK = "link"
    """Weights of the checkpoint stay there, behind symbolic links."""
    COPY = "copy"
    """Weights of the checkpoint are copied once to the data file."""
    ZEROS = "zeros"
    """Like LINK, but transformed weights are zeros in a sparse file, which takes no disk space."""


class Store:
    """A folder of graphs that share weights.

    Args:
        folder: an existing directory.
        weights: how weights are stored.
    """

    def __init__(self, folder: Path, weights: Weights = Weights.LINK) -> None:
        self.folder, self.weights = folder, weights
        self.layout = Layout()
        self.fresh = Layout(self.layout.sizes)
        self.made: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}
        self.links: set[str] = set()

    def save(self, model: ir.Model, name: str) -> Path:
        """Write a graph, and those of its weights that no earlier graph has; return its path."""
        copy = model.clone()
        for value in external(copy):
            assert value.const_value is not None
            value.const_value = self.placed(value.const_value, value.name or "")
        self.write()
        path = self.folder / name
        ir.save(copy, path)
        return path

    def placed(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Return the tensor as an external one in the folder, with its place reserved."""
        stored = in_checkpoint(tensor)
        if stored is not None and self.weights is not Weights.COPY:
            return self.at(self.link(stored.file), stored.offset, tensor, name)
        if stored is not None or isinstance(tensor, RowTensor):
            return self.at(DATA, self.row_place(row_tensor(tensor)), tensor, name)
        if id(tensor) not in self.made:  # stored with its tensor, so that the id is not reused
            place = self.layout.take(DATA, tensor.nbytes)
            self.fresh.arrays.append((place, tensor))
            self.made[id(tensor)] = tensor, self.at(DATA, place.offset, tensor, name)
        return self.made[id(tensor)][1]

    def row_place(self, tensor: ir.TensorProtocol) -> int:
        """Return the offset of a tensor that a source computes; reserve it at the first call."""
        assert isinstance(tensor, RowTensor)
        known = self.layout.jobs.get(tensor.source)
        if known is None or tensor.part not in known.places:
            self.layout.place(tensor, DATA)
            self.fresh.jobs[tensor.source] = self.layout.jobs[tensor.source]
        return self.layout.jobs[tensor.source].places[tensor.part].offset

    def at(self, file: str, offset: int, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Return an external tensor in a file of the folder."""
        shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
        return ir.ExternalTensor(
            file, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=self.folder
        )

    def link(self, file: Path) -> str:
        """Link a file of the checkpoint into the folder; return its name there."""
        if file.name not in self.links:
            (self.folder / file.name).symlink_to(file.resolve())
            self.links.add(file.name)
        return file.name

    def write(self) -> None:
        """Compute and write the weights added since the last call, a few rows at a time."""
        size = self.layout.sizes.get(DATA)
        if size is None:
            return
        with open(self.folder / DATA, "ab"):
            pass
        os.truncate(self.folder / DATA, size)
        if self.weights is not Weights.ZEROS:
            descriptor = os.open(self.folder / DATA, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                for work in tasks(self.fresh, {DATA: descriptor}):
                    work()
            finally:
                os.close(descriptor)
        self.fresh = Layout(self.layout.sizes)


def in_checkpoint(tensor: ir.TensorProtocol) -> Stored | None:
    """Return the stored weight behind a tensor that is unchanged but for its shape, or None."""
    if isinstance(tensor, ir.ExternalTensor):
        shape = tuple(int(d) for d in np.atleast_1d(tensor.shape.numpy()))
        file = Path(tensor.base_dir) / tensor.location
        return Stored(file, tensor.offset or 0, tensor.dtype, shape)
    if isinstance(tensor, RowTensor):
        source: Source = tensor.source
        while isinstance(source, Reshaped):
            source = source.source
        return source if isinstance(source, Stored) else None
    return None
