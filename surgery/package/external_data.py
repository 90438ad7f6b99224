"""Write weights to data files beside their graphs: streamed, aligned, and without duplicates.

A weight is computed in blocks of rows, which threads write to the data file in parallel. The offset
of every weight is fixed before the first byte is written, so the file does not depend on the number
of threads. Memory holds a few blocks, however large the model or its largest matrix is.

A transposed matrix is computed in tiles: rows of it are columns of what is stored, and the file
would be read once for each block of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.package.finite import check_array, check_rows, unquantizable
from surgery.rewrite.weights import (
    Array,
    Cast,
    RowQuantized,
    RowTensor,
    Source,
    Span,
    Stored,
    Transposed,
    Unreadable,
    numbers,
    stored,
    tile,
)

THRESHOLD = 1024
"""Initializers of at least this many bytes go to the data file. Smaller ones stay in the graph."""
SMALL_ALIGNMENT = 64
"""Alignment in bytes of tensors smaller than `LARGE`: one cache line."""
PAGE_ALIGNMENT = 65536
"""Alignment in bytes of large tensors: the granularity of memory mapping on Windows, which is a
multiple of the page size on other systems."""
LARGE = 1 << 20
"""Tensors of at least this many bytes start on a page, so that the runtime can map each alone."""
PIECE = 4 << 20
"""Bytes of float32 weights, or of codes in rows of 8 bits, that a thread computes at a time."""
SIDE = 1024
"""Side of the tiles of a transposed matrix: a piece in float32."""

SEEK = threading.Lock()
"""Held while a thread seeks and writes, where the system has no positioned write."""


@dataclass(frozen=True)
class Place:
    """The location of a tensor: a data file, and offset and length in bytes."""

    file: str
    offset: int
    nbytes: int


@dataclass
class Job:
    """One source, the weight that it makes, and the places of its arrays.

    `file` is where the weight is stored that the source reads.
    """

    source: Source
    name: str
    strict: bool
    file: str
    places: dict[int, Place] = field(default_factory=dict)


@dataclass
class Layout:
    """The places of all tensors of a package, decided before anything is written.

    `strict` tells whether numbers that are not finite in the input are refused too; see
    `surgery.package.finite.check_rows`. Where a file would grow beyond `limit`, the next weight
    goes to another file, called alike with `_1` behind it, then `_2`.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    jobs: dict[Source, Job] = field(default_factory=dict)
    arrays: list[tuple[Place, ir.TensorProtocol]] = field(default_factory=list)
    strict: bool = False
    limit: int | None = None
    volumes: dict[str, list[str]] = field(default_factory=dict)

    def volume(self, file: str, nbytes: int) -> str:
        """The data file that takes the next bytes; the first one takes any number."""
        names = self.volumes.setdefault(file, [file])
        filled = self.sizes.get(names[-1], 0)
        if self.limit is not None and filled and filled + nbytes > self.limit:
            names.append(f"{file}_{len(names)}")
        return names[-1]

    def take(self, file: str, nbytes: int) -> Place:
        """Reserve aligned space at the end of a file."""
        file = self.volume(file, nbytes)
        alignment = PAGE_ALIGNMENT if nbytes >= LARGE else SMALL_ALIGNMENT
        offset = -(-self.sizes.get(file, 0) // alignment) * alignment
        self.sizes[file] = offset + nbytes
        return Place(file, offset, nbytes)

    def place(self, tensor: ir.TensorProtocol, file: str, read: str = "the graph") -> Place:
        """Return the place of a tensor. Tensors with an equal source share one place.

        Args:
            tensor: an initializer.
            file: the data file to write.
            read: the file of the graph that it comes from.
        """
        if not isinstance(tensor, RowTensor):
            place = self.take(file, tensor.nbytes)
            self.arrays.append((place, tensor))
            return place
        job = self.jobs.setdefault(tensor.source, job_of(tensor, self.strict, read))
        if tensor.part not in job.places:
            job.places[tensor.part] = self.take(file, tensor.nbytes)
        return job.places[tensor.part]


def write_graphs(
    graphs: Mapping[str, ir.Model],
    folder: Path,
    threads: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    strict: bool = False,
    read: Mapping[str, Path] | None = None,
    data: str = ".data",
    limit: int | None = None,
) -> Layout:
    """Write graphs and their data files.

    Args:
        graphs: models by file name. A weight that several graphs share is in the data file of the
            first. Afterwards, the initializers of the models point to the written files.
        folder: an existing directory.
        threads: workers; all cores by default. The bytes do not depend on it.
        report: called with bytes done and in all.
        strict: refuse numbers that are not finite in the input too. Those that this program would
            make, such as a weight beyond float16, are always refused.
        read: the files of the graphs that were read, by the same names, for messages.
        data: what follows a graph's name in that of its data file.
        limit: bytes at which a further data file is begun; see `Layout`.

    Returns:
        The place of each tensor and the size of each data file.

    Raises:
        PackageError: a file with weights is missing or too short, and nothing was written; or a
            weight is not finite, and the message names it.
        OSError: the folder cannot be written. The file name of the error lies in it.
    """
    layout = Layout(strict=strict, limit=limit)
    for name, model in graphs.items():
        origin = str((read or {}).get(name, name))
        for value in external(model, strict, origin):
            tensor = value.const_value
            assert tensor is not None
            place = layout.place(row_tensor(tensor), f"{name}{data}", origin)
            value.const_value = ir.ExternalTensor(
                place.file,
                place.offset,
                place.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
                name=value.name or "",
                base_dir=folder,
            )
    for job in layout.jobs.values():
        for weight in stored_in(job.source):
            with naming(job):
                weight.check()
    write_data(layout, folder, threads or os.cpu_count() or 1, report)
    for name, model in graphs.items():
        ir.save(model, folder / name)
    return layout


def job_of(tensor: RowTensor, strict: bool, read: str) -> Job:
    """The work on a weight that is read from its own file, or else from that of its graph."""
    files = (str(weight.file) for weight in stored_in(tensor.source))
    return Job(tensor.source, weight_name(tensor), strict, next(files, read))


def weight_name(tensor: ir.TensorProtocol) -> str:
    """The name of the weight that an initializer belongs to."""
    return (
        (tensor.name or "a weight")
        .removesuffix(".packed")
        .removesuffix(".codes")
        .removesuffix(".scales")
        .removesuffix(".zero_points")
    )


def files_read(model: ir.Model) -> set[Path]:
    """The files where weights of a graph lie, those inside the graph's own file left out."""
    read = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                read.add(Path(tensor.base_dir) / tensor.location)
            elif isinstance(tensor, RowTensor):
                read.update(weight.file for weight in stored_in(tensor.source))
    return read


def stored_in(source: object) -> Iterator[Stored]:
    """The stored weights behind a source and the sources that it wraps."""
    if isinstance(source, Stored):
        yield source
    elif isinstance(source, tuple):
        for part in source:
            yield from stored_in(part)
    elif is_dataclass(source):
        for part in fields(source):
            yield from stored_in(getattr(source, part.name))


def external(model: ir.Model, strict: bool = False, read: str = "the graph") -> Iterator[ir.Value]:
    """Yield the initializers that go to a data file, and load the smaller ones into the graph.

    Args:
        model: the graph.
        strict: whether numbers that are not finite in the input are refused.
        read: the file of the graph that was read.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= THRESHOLD:
                yield value
            elif isinstance(tensor, RowTensor | ir.ExternalTensor):
                check_small(tensor, strict, read)
                array = np.array(numbers(tensor))
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)


def check_small(tensor: RowTensor | ir.ExternalTensor, strict: bool, read: str) -> None:
    """Check a weight that stays inside its graph."""
    row = row_tensor(tensor)
    assert isinstance(row, RowTensor)
    job = job_of(row, strict, read)
    rows = job.source.parts[0][1]
    with naming(job):
        read_checked(job, 0, rows[0] if rows else 1)


@contextlib.contextmanager
def naming(job: Job) -> Iterator[None]:
    """Let what goes wrong with a weight name it."""
    try:
        yield
    except Unreadable as e:
        raise Unreadable(f"{job.name}: {e}") from e
    except UserError:
        raise  # it names the weight
    except Exception as e:
        e.add_note(job.name)
        raise


@contextlib.contextmanager
def computing(job: Job) -> Iterator[None]:
    """Let a weight that cannot be quantized be an error for the user; overflow is refused later.

    Raises:
        PackageError: `quant` refused the numbers; the message names the weight and the cause.
    """
    try:
        with np.errstate(over="ignore"):
            yield
    except ValueError as e:
        raise unquantizable(job.name, job.source, e, job.file) from e


def row_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Wrap an external tensor in a `RowTensor`, so that it is streamed and shared too."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return RowTensor(stored(tensor), name=tensor.name or "")


def write_data(
    layout: Layout, folder: Path, threads: int, report: Callable[[int, int], None]
) -> None:
    """Write all tensors with a pool of threads and a bounded number of waiting tasks."""
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
    """Create a file and return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


def reserve(descriptor: int, size: int) -> None:
    """Allocate the space of a file, so that a full disk is an error before the work starts."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def tasks(layout: Layout, files: Mapping[str, int]) -> Iterator[Callable[[], int]]:
    """Yield tasks that each write a part and return the number of bytes."""
    for place, tensor in layout.arrays:
        if layout.strict:
            check_array(tensor.name or "a constant", tensor)
        yield lambda place=place, tensor=tensor: write_at(  # type: ignore[misc]
            files[place.file], place.offset, memoryview(tensor.tobytes())
        )
    for job in layout.jobs.values():
        if is_turned(job.source):
            yield from tiles(job, files)
            continue
        shape = job.source.parts[0][1]
        rows = shape[0] if shape else 1
        elements = max(1, int(np.prod(input_shape(job.source)[1:], dtype=np.int64)))
        step = max(1, PIECE // (4 * elements))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield lambda job=job, start=start, stop=stop: write_piece(  # type: ignore[misc]
                job, start, stop, files
            )


def is_turned(source: Source) -> bool:
    """Whether a source is a transposed matrix, cast or not."""
    while isinstance(source, Cast):
        source = source.source
    return isinstance(source, Transposed)


def tiles(job: Job, files: Mapping[str, int]) -> Iterator[Callable[[], int]]:
    """Yield tasks that each write a tile of a transposed matrix."""
    k, n = job.source.parts[0][1]
    height, width = tile_shape(job.source)
    for column in range(0, n, width):  # neighbours in the file that is read follow each other
        for row in range(0, k, height):
            rows = row, min(row + height, k)
            columns = column, min(column + width, n)
            yield lambda rows=rows, columns=columns: write_tile(  # type: ignore[misc]
                job, rows, columns, files
            )


def tile_shape(source: Source) -> tuple[int, int]:
    """Rows and columns of the tiles of a transposed matrix.

    A row in 8 bits is computed as a whole, so a tile of its columns has all of them.
    """
    if isinstance(source, Transposed) and isinstance(source.source, RowQuantized):
        k = source.parts[0][1][0]
        return k, max(1, PIECE // k)
    return SIDE, SIDE


def write_tile(job: Job, rows: Span, columns: Span, files: Mapping[str, int]) -> int:
    """Write some columns of some rows of a matrix, and return the bytes."""
    with naming(job):
        with computing(job):
            array = tile(job.source, rows, columns)
        check_rows(job.name, job.source, 0, array, job.strict, job.file)
    place = job.places[0]
    size, width = array.itemsize, job.source.parts[0][1][1]
    offset = place.offset + (rows[0] * width + columns[0]) * size
    data, length = memoryview(array.reshape(-1).view(np.uint8).data), array.shape[1] * size
    for i in range(len(array)):
        part = data[i * length : (i + 1) * length]
        write_at(files[place.file], offset + i * width * size, part)
    return len(data)


def input_shape(source: Any) -> tuple[int, ...]:
    """Return the shape of the data that a source reads, by which blocks of rows are sized."""
    shape: tuple[int, ...] = source.parts[0][1]
    inner = getattr(source, "source", None)
    if inner is not None and inner.parts[0][1][:1] == shape[:1]:
        return input_shape(inner)
    return shape


def read_checked(job: Job, start: int, stop: int) -> tuple[Array, ...]:
    """Rows of every array of a source, all of them finite.

    Raises:
        PackageError: they are not; the message names the weight.
    """
    with computing(job):
        arrays = job.source.read(start, stop)
    for part, rows in enumerate(arrays):
        check_rows(job.name, job.source, part, rows, job.strict, job.file)
    return arrays


def write_piece(job: Job, start: int, stop: int, files: Mapping[str, int]) -> int:
    """Compute some rows of a source, write them for each of its arrays, and return the bytes."""
    written = 0
    with naming(job):
        parts = read_checked(job, start, stop)
    for part, rows in enumerate(parts):
        place = job.places.get(part)
        if place is not None:
            shape = job.source.parts[part][1]
            row_bytes = place.nbytes // shape[0]
            array = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
            written += write_at(files[place.file], place.offset + start * row_bytes, array.data)
    return written


def write_at(descriptor: int, offset: int, view: memoryview) -> int:
    """Write bytes at an offset and return their number."""
    done = 0
    if hasattr(os, "pwrite"):
        while done < len(view):
            done += os.pwrite(descriptor, view[done:] if done else view, offset + done)
        return done
    with SEEK:  # Windows has no positioned write
        os.lseek(descriptor, offset, os.SEEK_SET)
        while done < len(view):
            done += os.write(descriptor, view[done:])
    return done
