"""Weights written beside their graphs: streamed, aligned, equal ones once.

A weight is computed a block of rows at a time and written to its place, on all cores. The places
are fixed before the first byte is written, so the outcome is the same for any number of threads,
and memory holds a few blocks, whatever the size of the model or of its largest matrix.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.rewrite.weights import RowTensor, Source, Stored

THRESHOLD = 1024
"""Bytes from which an initializer goes to the data file; smaller ones stay in the graph."""
SMALL_ALIGNMENT = 64
"""A cache line."""
PAGE_ALIGNMENT = 65536
"""Allocation granularity of a mapping on Windows, a multiple of every page size elsewhere."""
LARGE = 1 << 20
"""Bytes from which a tensor starts on its own page, so that the runtime can map it alone."""
PIECE = 4 << 20
"""Bytes of float32 weights that one thread works on at a time."""


SEEK = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: str
    offset: int
    nbytes: int


@dataclass
class Job:
    """One source, a name of it, and the places of its arrays."""

    source: Source
    name: str = ""
    places: dict[int, Place] = field(default_factory=dict)


@dataclass
class Layout:
    """The places of all tensors of a package, decided before anything is written."""

    sizes: dict[str, int] = field(default_factory=dict)
    jobs: dict[Source, Job] = field(default_factory=dict)
    arrays: list[tuple[Place, ir.TensorProtocol]] = field(default_factory=list)

    def take(self, file: str, nbytes: int) -> Place:
        """Reserve bytes at the end of a file."""
        alignment = PAGE_ALIGNMENT if nbytes >= LARGE else SMALL_ALIGNMENT
        offset = -(-self.sizes.get(file, 0) // alignment) * alignment
        self.sizes[file] = offset + nbytes
        return Place(file, offset, nbytes)

    def place(self, tensor: ir.TensorProtocol, file: str) -> Place:
        """The place of a tensor: an earlier one where the bytes are the same."""
        if not isinstance(tensor, RowTensor):
            place = self.take(file, tensor.nbytes)
            self.arrays.append((place, tensor))
            return place
        job = self.jobs.setdefault(tensor.source, Job(tensor.source, tensor.name or ""))
        if tensor.part not in job.places:
            job.places[tensor.part] = self.take(file, tensor.nbytes)
        return job.places[tensor.part]


def write_graphs(
    graphs: Mapping[str, ir.Model],
    folder: Path,
    threads: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Layout:
    """Write graphs and their data files.

    Args:
        graphs: models by file name, such as "model.onnx"; its data goes to "model.onnx.data".
            A weight that several share lies in the file of the first. The models end up
            pointing at what was written.
        folder: an existing directory.
        threads: workers; all cores by default. The bytes do not depend on it.
        report: called with bytes done and in all.

    Returns:
        What was written where.

    Raises:
        PackageError: a file with weights is gone or too short; nothing was written then.
        OSError: the folder cannot be written; its file name lies in it.
    """
    layout = Layout()
    for name, model in graphs.items():
        for value in external(model):
            tensor = value.const_value
            assert tensor is not None
            place = layout.place(row_tensor(tensor), f"{name}.data")
            value.const_value = ir.ExternalTensor(
                place.file,
                place.offset,
                place.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
                name=value.name or "",
                base_dir=folder,
            )
    for source in layout.jobs:
        for stored in stored_in(source):
            stored.check()
    write_data(layout, folder, threads or os.cpu_count() or 1, report)
    for name, model in graphs.items():
        ir.save(model, folder / name)
    return layout


def files_read(model: ir.Model) -> set[Path]:
    """The files where weights of a graph lie, those inside the graph's own file left out."""
    read = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                read.add(Path(tensor.base_dir) / tensor.location)
            elif isinstance(tensor, RowTensor):
                read.update(stored.file for stored in stored_in(tensor.source))
    return read


def stored_in(source: object) -> Iterator[Stored]:
    """The stored weights behind a source and the sources that it wraps."""
    if isinstance(source, Stored):
        yield source
    elif is_dataclass(source):
        for part in fields(source):
            yield from stored_in(getattr(source, part.name))


def external(model: ir.Model) -> Iterator[ir.Value]:
    """Initializers that go to a data file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= THRESHOLD:
                yield value
            elif isinstance(tensor, RowTensor | ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name
                )


def row_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor of the checkpoint as a source, so that it is streamed and shared too."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    file = Path(tensor.base_dir) / tensor.location
    shape = tuple(tensor.shape.numpy())
    return RowTensor(Stored(file, tensor.offset or 0, tensor.dtype, shape), name=tensor.name)


def write_data(
    layout: Layout, folder: Path, threads: int, report: Callable[[int, int], None]
) -> None:
    """Write every job's pieces, a few in flight."""
    total = sum(layout.sizes.values())
    done = 0
    files: dict[str, int] = {}
    try:
        for name, size in layout.sizes.items():
            files[name] = open_file(folder / name)
            reserve(files[name], size)
        with ThreadPoolExecutor(threads) as pool:
            running: set[Future[int]] = set()
            for work in tasks(layout, files):
                running.add(pool.submit(work))
                if len(running) > 2 * threads:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    done += sum(future.result() for future in finished)
                    report(done, total)
            for future in running:
                done += future.result()
            report(total, total)
    except OSError as e:
        raise OSError(e.errno, e.strerror, e.filename or str(folder)) from e
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def open_file(path: Path) -> int:
    """A new file to write at any place."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size and its space, so that a full disk shows before the work."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def tasks(layout: Layout, files: Mapping[str, int]) -> Iterator[Callable[[], int]]:
    """Pieces of work, each returning the bytes that it wrote."""
    for place, tensor in layout.arrays:
        yield lambda place=place, tensor=tensor: write_at(  # type: ignore[misc]
            files[place.file], place.offset, np.frombuffer(tensor.tobytes(), np.uint8)
        )
    for job in layout.jobs.values():
        shape = job.source.parts[0][1]
        rows = shape[0] if shape else 1
        elements = max(1, int(np.prod(input_shape(job.source)[1:], dtype=np.int64)))
        step = max(1, PIECE // (4 * elements))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield lambda job=job, start=start, stop=stop: write_piece(  # type: ignore[misc]
                job, start, stop, files
            )


def input_shape(source: Any) -> tuple[int, ...]:
    """Shape of the numbers that a source works on: a block of its rows must fit the cache."""
    shape: tuple[int, ...] = source.parts[0][1]
    inner = getattr(source, "source", None)
    if inner is not None and inner.parts[0][1][:1] == shape[:1]:
        return input_shape(inner)
    return shape


def write_piece(job: Job, start: int, stop: int, files: Mapping[str, int]) -> int:
    """Compute rows of a source and write each array's part."""
    written = 0
    try:
        parts = job.source.read(start, stop)
    except Exception as e:
        e.add_note(job.name)
        raise
    for part, rows in enumerate(parts):
        place = job.places.get(part)
        if place is not None:
            shape = job.source.parts[part][1]
            row_bytes = place.nbytes // shape[0]
            array = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
            written += write_at(files[place.file], place.offset + start * row_bytes, array)
    return written


def write_at(descriptor: int, offset: int, array: np.ndarray) -> int:
    """Write all bytes of an array at an offset."""
    view = memoryview(array.data)
    done = 0
    if hasattr(os, "pwrite"):
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)
        return done
    with SEEK:  # Windows has no positioned write
        os.lseek(descriptor, offset, os.SEEK_SET)
        while done < len(view):
            done += os.write(descriptor, view[done:])
    return done
