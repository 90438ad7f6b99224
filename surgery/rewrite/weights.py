"""Lazy weights: where the numbers are stored and how they are transformed when they are read.

Passes never load a weight. They wrap its source in another one (a cast, a transpose, a
quantization), and the package writer reads the outermost source a block of rows at a time. Weights
with equal sources hold equal bytes, so the writer stores them once.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import quant
from surgery.base.errors import PackageError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Span = tuple[int, int]
"""A first index, and the one behind the last."""

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Unsigned integers by their size in bytes."""
TILE = 128
"""Side of the square blocks in which a matrix is transposed."""
STRIP = 1 << 18
"""Numbers in the rows of a matrix that are computed together to become columns."""
BAND = 1 << 20
"""Bytes of whole rows that are read together where some columns of them are wanted."""
SHORT = 16 << 10
"""Bytes of rows that are always read whole: a call of the system costs as much as copying them."""
FEW = 4
"""Longer rows are read whole up to this many times what is wanted; beyond, each piece alone."""


class Unreadable(PackageError):
    """A stored weight cannot be read."""


class Source(Protocol):
    """Rows of one or more arrays that are computed together.

    `read(start, stop)` gives rows `start:stop` of each; row r of every array comes from the same
    row of the weight. Sources are hashable by value: equal ones hold equal bytes.
    """

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """Dtype and shape of each array."""

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows of each array; safe to call from several threads."""


@dataclass(frozen=True)
class Stored:
    """A weight stored in a file: a shard of a checkpoint, or external data of a graph."""

    file: Path
    offset: int
    dtype: ir.DataType
    shape: Shape

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The stored array."""
        return ((self.dtype, self.shape),)

    def check(self) -> None:
        """Raise `Unreadable` unless the file is there and long enough."""
        try:
            size = self.file.stat().st_size
        except OSError as e:
            raise Unreadable(f"{self.file}: cannot be read: {e.strerror}.") from e
        self.require(size, self.offset + math.prod(self.shape) * self.dtype.numpy().itemsize)

    def require(self, size: int, needed: int) -> None:
        """Raise `Unreadable` where the file ends too early, in bytes."""
        if size < needed:
            raise Unreadable(
                f"{self.file}: ends at byte {size:,}, and a weight ends at {needed:,}: the file "
                f"was cut after the export. Restore it, or export again."
            )

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows, read from the file.

        Read and not mapped: where a file is cut during the run, a mapping ends the process.

        Raises:
            Unreadable: the file cannot be read, or ends too early.
        """
        first, last, _ = slice(start, stop).indices(self.shape[0] if self.shape else 1)
        shape = (last - first, *self.shape[1:]) if self.shape else ()
        rows = np.empty(shape, self.dtype.numpy())
        with self.opened() as file:
            self.fill(file, rows, first * math.prod(self.shape[1:]))
        return (rows,)

    def tile(self, rows: Span, columns: Span) -> Array:
        """Some columns of some rows of a matrix, read as `read` does.

        Args:
            rows: first row, and the one behind the last.
            columns: first column, and the one behind the last.

        Raises:
            Unreadable: the file cannot be read, or ends too early.
        """
        width, wanted = self.shape[1], columns[1] - columns[0]
        out = np.empty((rows[1] - rows[0], wanted), self.dtype.numpy())
        with self.opened() as file:
            if width > FEW * wanted and width * out.itemsize > SHORT:
                for i, row in enumerate(out):
                    self.fill(file, row, (rows[0] + i) * width + columns[0])
                return out
            step = max(1, BAND // (width * out.itemsize))
            band = np.empty((min(step, len(out)), width), out.dtype)
            for first in range(0, len(out), step):
                part = band[: len(out) - first]
                self.fill(file, part, (rows[0] + first) * width)
                out[first : first + step] = part[:, slice(*columns)]
        return out

    @contextlib.contextmanager
    def opened(self) -> Iterator[FileIO]:
        """The file, without a buffer; what the system says of it becomes `Unreadable`."""
        try:
            with self.file.open("rb", buffering=0) as file:
                yield file
        except OSError as e:
            raise Unreadable(f"{self.file}: cannot be read: {e.strerror}.") from e

    def fill(self, file: FileIO, array: Array, element: int) -> None:
        """Fill a contiguous array from the file, beginning at an element of the weight."""
        offset = self.offset + element * array.itemsize
        into = memoryview(array.reshape(-1).view(np.uint8).data)
        file.seek(offset)
        done = 0
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                size = os.fstat(file.fileno()).st_size
                self.require(min(size, offset + done), offset + len(into))
            done += count or 0


@dataclass(frozen=True, eq=False)
class Inline:
    """A weight stored inside the graph's own file. Two of them never compare as equal."""

    tensor: ir.TensorProtocol

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The array."""
        return ((self.tensor.dtype, tuple(self.tensor.shape.numpy())),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """A view of the rows."""
        return (np.asarray(self.tensor.numpy())[start:stop],)


@dataclass(frozen=True)
class Cast:
    """A source in another float dtype."""

    source: Source
    dtype: ir.DataType

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The array in the new dtype."""
        return ((self.dtype, self.source.parts[0][1]),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Cast rows; round to nearest even, as PyTorch does."""
        (rows,) = self.source.read(start, stop)
        return (self.of(rows),)

    def of(self, rows: Array) -> Array:
        """Numbers of the source, cast."""
        if self.source.parts[0][0] == ir.DataType.BFLOAT16 and self.dtype == ir.DataType.FLOAT:
            # bfloat16 is the upper half of float32; NumPy's own cast converts value by value.
            wide = rows.view(np.uint16).astype(np.uint32)
            np.left_shift(wide, 16, out=wide)
            return wide.view(np.float32)
        return rows.astype(self.dtype.numpy())


@dataclass(frozen=True)
class Transposed:
    """A matrix `[N, K]` as `[K, N]`."""

    source: Source

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The transposed array."""
        dtype, (n, k) = self.source.parts[0]
        return ((dtype, (k, n)),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Columns `start:stop` of the source as rows; the source is read in blocks of rows."""
        return (tile(self, (start, stop), (0, self.parts[0][1][1])),)


@dataclass(frozen=True)
class Swapped:
    """A stack of matrices `[E, N, K]` as `[E, K, N]`."""

    source: Source

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The stack, its matrices transposed."""
        dtype, (e, n, k) = self.source.parts[0]
        return ((dtype, (e, k, n)),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Whole matrices, transposed."""
        (stack,) = self.source.read(start, stop)
        e, n, k = stack.shape
        out = np.empty((e, k, n), stack.dtype)
        for matrix, turned in zip(stack, out, strict=True):
            turn(matrix, turned)
        return (out,)


@dataclass(frozen=True)
class Interleaved:
    """A stack of matrices `[E, 2I, K]` with the rows of both halves alternating: 0, I, 1, ...

    With `back`, the inverse: alternating rows become two halves.
    """

    source: Source
    back: bool = False

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The stack, same dtype and shape."""
        return self.source.parts[:1]

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Whole matrices."""
        (stack,) = self.source.read(start, stop)
        e, n, k = stack.shape
        halves = (e, n // 2, 2, k) if self.back else (e, 2, n // 2, k)
        return (np.ascontiguousarray(stack.reshape(halves).swapaxes(1, 2)).reshape(e, n, k),)


def tile(source: Source, rows: Span, columns: Span) -> Array:
    """Some columns of some rows of a matrix; of a stored one, no more is read than needed.

    Args:
        source: a matrix.
        rows: first row, and the one behind the last.
        columns: first column, and the one behind the last.

    Raises:
        Unreadable: a file cannot be read, or ends too early.
    """
    if isinstance(source, Cast):
        return source.of(tile(source.source, rows, columns))
    if isinstance(source, Stored):
        return source.tile(rows, columns)
    if isinstance(source, Transposed):
        dtype, (k, _) = source.parts[0]
        out = np.empty((rows[1] - rows[0], columns[1] - columns[0]), dtype.numpy())
        step = max(TILE, STRIP // k)
        for first in range(*columns, step):
            last = min(first + step, columns[1])
            strip = tile(source.source, (first, last), rows)
            turn(strip, out[:, first - columns[0] : last - columns[0]])
        return out
    return source.read(*rows)[0][:, slice(*columns)]


def turn(matrix: Array, turned: Array | None = None) -> Array:
    """Transpose a matrix in tiles that fit the cache.

    Args:
        matrix: `[N, K]`.
        turned: `[K, N]` of the same dtype, to write to; by default a new, contiguous array.

    Returns:
        `[K, N]`.
    """
    n, k = matrix.shape
    turned = np.empty((k, n), matrix.dtype) if turned is None else turned
    unsigned = UNSIGNED[matrix.dtype.itemsize]  # NumPy moves these without a cast
    plain, out = matrix.view(unsigned), turned.view(unsigned)
    for first in range(0, n, TILE):
        rows = slice(first, first + TILE)
        for column in range(0, k, TILE):
            columns = slice(column, column + TILE)
            out[columns, rows] = plain[rows, columns].T
    return turned


def narrow(source: Source) -> Source:
    """Strip a float32 upcast that will be redone or that quantizing does not need."""
    widened = isinstance(source, Cast) and source.dtype == ir.DataType.FLOAT
    return source.source if widened else source  # type: ignore[attr-defined]


def transposed(source: Source) -> Source:
    """A matrix, or each of a stack, transposed. A cast stays outermost, where `narrow` finds it."""
    if isinstance(source, Cast):
        return Cast(transposed(source.source), source.dtype)
    if isinstance(source, Transposed | Swapped):
        return source.source
    return Transposed(source) if len(source.parts[0][1]) == 2 else Swapped(source)


def interleaved(source: Source) -> Source:
    """A stack with the rows of both halves alternating. A cast stays outermost."""
    if isinstance(source, Cast):
        return Cast(interleaved(source.source), source.dtype)
    return Interleaved(source)


@dataclass(frozen=True)
class Reshaped:
    """A source whose rows have another inner shape; the first axis stays."""

    source: Source
    shape: Shape

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The reshaped array."""
        return ((self.source.parts[0][0], self.shape),)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows, reshaped."""
        (rows,) = self.source.read(start, stop)
        return (rows.reshape(stop - start, *self.shape[1:]),)


@dataclass(frozen=True)
class Shifted:
    """A float32 source with a number added."""

    source: Source
    number: float

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The array, same dtype and shape."""
        return self.source.parts[:1]

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows plus the number."""
        (rows,) = self.source.read(start, stop)
        return (rows + rows.dtype.type(self.number),)


@dataclass(frozen=True)
class RowScaled:
    """A float32 source whose row r is multiplied by number r of another source."""

    source: Source
    scale: Source

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """The array, same dtype and shape."""
        return self.source.parts[:1]

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows, each times its number."""
        (rows,) = self.source.read(start, stop)
        (factors,) = self.scale.read(start, stop)
        return (rows * factors.reshape(-1, *[1] * (rows.ndim - 1)),)


@dataclass(frozen=True)
class Quantized:
    """A matrix `[N, K]` in blocks: packed codes, scales, and zero points where asymmetric.

    Shapes are those of `com.microsoft.MatMulNBits`: see `quant.blocks`. A stack of matrices
    `[E, N, K]` is read by whole matrices; each array then has E in front.
    """

    source: Source
    format: quant.BlockFormat
    scales: ir.DataType = ir.DataType.FLOAT

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """Packed codes, scales, zero points."""
        *stack, n, k = self.source.parts[0][1]
        packed = (ir.DataType.UINT8, (*stack, *self.format.packed_shape(n, k)))
        scales = (self.scales, (*stack, *self.format.scales_shape(n, k)))
        if self.format.symmetric:
            return packed, scales
        zero_points = self.format.zero_points_shape(n, k)
        assert zero_points is not None
        return packed, scales, (ir.DataType.UINT8, (*stack, *zero_points))

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Quantize rows, or whole matrices of a stack."""
        (rows,) = self.source.read(start, stop)
        matrix = rows.reshape(-1, rows.shape[-1])
        parts = quant.quantize_rows(matrix, self.format, scales_dtype=self.scales.numpy())
        return tuple(
            part.reshape(*rows.shape[:-1], *part.shape[1:]) for part in parts if part is not None
        )


@dataclass(frozen=True)
class RowQuantized:
    """A matrix `[N, K]` in int8 with one scale for each row: see `quant.quantize_channels`."""

    source: Source

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """Codes, scales."""
        shape = self.source.parts[0][1]
        return (ir.DataType.INT8, shape), (ir.DataType.FLOAT, shape[:1])

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Quantize rows."""
        (rows,) = self.source.read(start, stop)
        found = quant.quantize_channels(rows)
        return found.codes, found.scales


class RowTensor(ir.LazyTensor):
    """An initializer whose numbers come from a source: a lazy tensor of onnx-ir.

    Args:
        source: where the rows come from.
        part: which of the source's arrays this is.
        name: name of the initializer.
        shape: another shape for the same bytes, the first axis unchanged.
    """

    def __init__(
        self, source: Source, part: int = 0, *, name: str, shape: Shape | None = None
    ) -> None:
        self.source, self.part = source, part
        dtype, natural = source.parts[part]
        final = natural if shape is None else shape

        def whole() -> ir.TensorProtocol:
            array = source.read(0, natural[0])[part].reshape(final)
            return ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=name)

        super().__init__(whole, dtype=dtype, shape=ir.Shape(final), name=name)


def stored(tensor: ir.ExternalTensor) -> Stored:
    """An external tensor as a source that is read and not mapped, of its own shape and dtype.

    Of numbers that share bytes, such as int4, the bytes are the source: uint8 `[nbytes]`.
    """
    file = Path(tensor.base_dir) / tensor.location
    if tensor.dtype.bitwidth < 8:
        return Stored(file, tensor.offset or 0, ir.DataType.UINT8, (tensor.nbytes,))
    return Stored(file, tensor.offset or 0, tensor.dtype, tuple(tensor.shape.numpy()))


def numbers(tensor: ir.TensorProtocol) -> Array:
    """All numbers of a small tensor, in its shape and dtype; a data file is read and not mapped.

    Raises:
        Unreadable: the file cannot be read, or ends too early; the message names the tensor.
    """
    try:
        if not isinstance(tensor, ir.ExternalTensor):
            return np.asarray(tensor.numpy())
        source = stored(tensor)
        (array,) = source.read(0, source.shape[0] if source.shape else 1)
    except Unreadable as e:
        raise Unreadable(f"{tensor.name}: {e}") from e
    if tensor.dtype.bitwidth < 8:
        packed = ir.PackedTensor(array, tensor.dtype, shape=tensor.shape)
        return np.asarray(packed.numpy())
    return array


def source_of(value: ir.Value) -> Source | None:
    """The source of an initializer that is a weight; None for a constant held in memory.

    None also for numbers that share bytes, such as int4: rows of them are no rows of bytes.
    """
    tensor = value.const_value
    if isinstance(tensor, RowTensor):
        return tensor.source if tensor.part == 0 else None
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        return stored(tensor)
    return None


def set_source(value: ir.Value, source: Source) -> None:
    """Give an initializer another source, and with it another dtype and shape."""
    assert value.name is not None
    tensor = RowTensor(source, name=value.name)
    value.const_value = tensor
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape)


@dataclass(frozen=True)
class Prepared:
    """A matrix [N, K] whose blocks were computed before and lie in files.

    Attributes:
        stored: codes, scales and, where the format has them, zero points.
        format: of the blocks.
    """

    stored: tuple[Stored, ...]
    format: quant.BlockFormat

    @property
    def parts(self) -> tuple[tuple[ir.DataType, Shape], ...]:
        """Packed codes, scales, zero points."""
        return tuple(part.parts[0] for part in self.stored)

    def read(self, start: int, stop: int) -> tuple[Array, ...]:
        """Rows of each."""
        return tuple(part.read(start, stop)[0] for part in self.stored)
