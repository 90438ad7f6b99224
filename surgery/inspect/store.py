"""Many graphs over one set of weights: the steps of a run as files, no weight written twice.

A weight that still lies in the checkpoint is read there, through a hard link beside the graphs:
onnxruntime follows no path out of a graph's folder. What passes did to a weight (cast, transpose,
quantize) is computed once, a few rows at a time, into one data file that all steps share.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.package.external_data import Layout, external, tasks
from surgery.weights import Reshaped, RowTensor, Source, Stored

DATA = "weights.data"
"""Name of the file of transformed weights."""


class Store:
    """A folder of graphs that share weights.

    Args:
        folder: an existing directory.
        symbolic: leave transformed weights as zeros that take no place on the disk. The graphs
            load and have the right shapes, their numbers mean nothing.
    """

    def __init__(self, folder: Path, symbolic: bool = False) -> None:
        self.folder, self.symbolic = folder, symbolic
        self.layout = Layout()
        self.fresh = Layout(self.layout.sizes)
        self.made: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}
        self.links: dict[Path, str | None] = {}

    def save(self, model: ir.Model, name: str) -> Path:
        """Write a graph, and those of its weights that no earlier graph had."""
        copy = model.clone()
        for value in external(copy):
            assert value.const_value is not None
            value.const_value = self.placed(value.const_value, value.name or "")
        self.write()
        path = self.folder / name
        ir.save(copy, path)
        return path

    def placed(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Where the numbers of a tensor lie, or will."""
        stored = in_checkpoint(tensor)
        link = None if stored is None else self.link(stored.file)
        if stored is not None and link is not None:
            return self.at(link, stored.offset, tensor, name)
        if isinstance(tensor, RowTensor) or stored is not None:
            row = tensor if isinstance(tensor, RowTensor) else RowTensor(stored, name=name)  # type: ignore[arg-type]
            known = self.layout.jobs.get(row.source)
            if known is None or row.part not in known.places:
                place = self.layout.place(row, DATA)
                self.fresh.jobs[row.source] = self.layout.jobs[row.source]
            else:
                place = known.places[row.part]
            return self.at(DATA, place.offset, tensor, name)
        if id(tensor) not in self.made:  # kept with its tensor, so that the id stays taken
            place = self.layout.take(DATA, tensor.nbytes)
            self.fresh.arrays.append((place, tensor))
            self.made[id(tensor)] = tensor, self.at(DATA, place.offset, tensor, name)
        return self.made[id(tensor)][1]

    def at(
        self, file: str, offset: int, tensor: ir.TensorProtocol, name: str
    ) -> ir.ExternalTensor:
        """A tensor in a file of the folder."""
        shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
        return ir.ExternalTensor(
            file, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=self.folder
        )

    def link(self, file: Path) -> str | None:
        """The name of a file of the checkpoint in this folder; None where no link can be made."""
        if file not in self.links:
            target = self.folder / file.name
            try:
                target.unlink(missing_ok=True)
                os.link(file.resolve(), target)
                self.links[file] = target.name
            except OSError:
                self.links[file] = None
        return self.links[file]

    def write(self) -> None:
        """Compute what is fresh, a few rows at a time."""
        size = self.layout.sizes.get(DATA)
        if size is None:
            return
        with open(self.folder / DATA, "ab"):
            pass
        os.truncate(self.folder / DATA, size)
        if not self.symbolic:
            descriptor = os.open(self.folder / DATA, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                for work in tasks(self.fresh, {DATA: descriptor}):
                    work()
            finally:
                os.close(descriptor)
        self.fresh = Layout(self.layout.sizes)


def in_checkpoint(tensor: ir.TensorProtocol) -> Stored | None:
    """The place of a tensor that lies in a file as it is, under whatever shape."""
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
