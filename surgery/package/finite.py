"""Are the numbers that are written finite? Checked while weights stream through, row by row.

NaN and infinity in one weight make every answer of a package NaN, or, behind a norm that int4
kernels quantize, finite and wrong. They come from a broken checkpoint, or from a number beyond
65,504 that was rounded to float16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from surgery.base.errors import PackageError
from surgery.rewrite.weights import Array, Source

LARGEST = 65504.0
"""Largest float16."""
PIECE = 1 << 20
"""Numbers that the search for a cause looks at together."""

EXPONENT = {
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
}
"""Bits of the exponent: all of them are set in infinity and NaN. NumPy's `isfinite` goes through
these dtypes value by value, fifteen times slower."""

ADVICE = (
    "Keep it in float32: -t fp32 for the decoder, -p fp32 for vision and embedding, and a provider "
    "that computes in float32, such as -e cpu."
)


def is_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor infinity; integers never do."""
    mask = EXPONENT.get(array.dtype)
    if mask is not None:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return not array.size or int(np.bitwise_and(bits, mask).max()) != int(mask)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_rows(name: str, source: Source, part: int, rows: Array, strict: bool, file: str) -> None:
    """Refuse rows that are about to be written and are not finite.

    Args:
        name: the weight.
        source: where the rows come from.
        part: which of its arrays they belong to.
        rows: the rows.
        strict: whether numbers that are not finite in the input are refused too, and not only
            those that this program would make. A graph that somebody else exported may hold
            infinity on purpose, such as a mask.
        file: where the weight is stored.

    Raises:
        PackageError: the message names the weight, what it holds and what to do.
    """
    if is_finite(rows):
        return
    found = Found.of(source)
    if not found.whole:
        if strict:
            raise broken(name, found, file)
        return
    dtype = source.parts[part][0]
    if dtype == ir.DataType.FLOAT16:
        raise PackageError(
            f"{name}: holds {found.largest:,.0f}, beyond {LARGEST:,.0f}, the largest float16. "
            f"{ADVICE}"
        )
    raise PackageError(
        f"{name}: holds numbers up to {found.largest:.3g}, which overflow {dtype.short_name()}."
    )


def check_array(name: str, tensor: ir.TensorProtocol) -> None:
    """Refuse a constant that holds NaN. Infinity is allowed: masks consist of it.

    Raises:
        PackageError: the message names the constant.
    """
    if not tensor.dtype.is_floating_point() or tensor.dtype.itemsize < 2:
        return
    array = np.asarray(tensor.numpy())
    if not is_finite(array) and bool(np.isnan(array.astype(np.float32)).any()):
        raise PackageError(f"{name}: computed from the graph and the configuration, holds NaN.")


def broken(name: str, found: Found, file: str) -> PackageError:
    """The error for a weight whose numbers are not finite where it is stored."""
    return PackageError(f"{name}: holds {found.words()}: {file} is broken there.")


def unquantizable(name: str, source: Source, error: ValueError, file: str) -> PackageError:
    """The error for a weight that cannot be quantized, from what `quant` says of a row of it."""
    try:
        found = Found.of(source)
    except ValueError:  # not even read
        return PackageError(f"{name}: cannot be read: {error}.")
    if not found.whole:
        return broken(name, found, file)
    return PackageError(
        f"{name}: cannot be quantized: {error} Its largest weight is {found.largest:.3g}. {ADVICE}"
    )


@dataclasses.dataclass
class Found:
    """What the inputs of a source hold.

    Attributes:
        nans: number of NaN.
        infinities: number of infinities.
        largest: largest magnitude among the finite numbers.
    """

    nans: int = 0
    infinities: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, source: Source) -> Found:
        """Look through all inputs of a source. Slow: for messages."""
        found = cls()
        for stored in inputs(source):
            shape = stored.parts[0][1]
            row = max(1, int(np.prod(shape[1:], dtype=np.int64)))
            step = max(1, PIECE // row)
            for start in range(0, shape[0] if shape else 1, step):
                for array in stored.read(start, min(start + step, shape[0] if shape else 1)):
                    found.look(np.asarray(array))
        return found

    def look(self, array: Array) -> None:
        """Count an array in."""
        if array.dtype.kind not in "fV" and array.dtype not in EXPONENT:
            return
        wide = np.abs(array.astype(np.float64))
        nans = int(np.isnan(wide).sum())
        infinities = int(np.isinf(wide).sum())
        self.nans += nans
        self.infinities += infinities
        finite = wide[np.isfinite(wide)]
        if finite.size:
            self.largest = max(self.largest, float(finite.max()))

    @property
    def whole(self) -> bool:
        """Whether all numbers are finite."""
        return not self.nans and not self.infinities

    def words(self) -> str:
        """What is not finite, in words."""
        kinds = ((self.nans, "NaN"), (self.infinities, "infinity"))
        return " and ".join(f"{kind} ({count} of them)" for count, kind in kinds if count)


def inputs(source: Source) -> Iterator[Source]:
    """The sources that a source is computed from and that are computed from nothing."""
    inner = [
        value
        for field in dataclasses.fields(source)  # type: ignore[arg-type]
        if hasattr(value := getattr(source, field.name), "read") and hasattr(value, "parts")
    ]
    if not inner:
        yield source
    for value in inner:
        yield from inputs(value)
