"""The bytes of `quant.definition`, at memory speed.

A block is short, so reducing over it or broadcasting a scale along it would spend NumPy's time
on inner loops of 32 elements. Instead a piece of rows, small enough for the cache, is turned so
that the *blocks* run along the last axis:

    weights [blocks, block]  ->  [block/4, blocks, 4]       quads of weights move as one element

Reductions over the first axis and products with per-block scales then are long contiguous
loops. The codes fall out of float arithmetic: adding `1.5 * 2**23` leaves the integer nearest
to a small float, half to even, in the low bits of the sum. Quads of codes are turned back as
they are stored.

All of it is ufuncs with `out=` on memory that a thread keeps: they release the GIL, so threads
scale, and hardly anything is allocated but the result. No operation depends on where a piece
begins, so the bytes are the same for every piece size and every number of threads.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import BlockFormat, Blocks, pack
from quant.definition import check_scales, check_scales_dtype, check_weight

__all__ = ["quantize_parallel", "quantize_rows"]

# float32 bytes worked on at a time. One thread would be as fast on a quarter of it; several need
# calls this long, because each hands the GIL over.
PIECE_BYTES = 2 << 20

# Adding it rounds a float32 in -2**22..2**22 to an integer, which is then in the low bits.
ROUNDER = np.float32(1.5 * 2**23)

QUAD = 4  # weights moved as one element

# (packed, scales, zero_points) of some rows
RowArrays = tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[np.uint8] | None]


def quantize_rows(
    rows: npt.NDArray[Any],
    format: BlockFormat,
    *,
    scales_dtype: npt.DTypeLike = np.float32,
    out: RowArrays | None = None,
    first_row: int = 0,
) -> RowArrays:
    """Quantize some rows of a matrix in the calling thread; byte for byte what `quantize` gives.

    Any number of threads may call it at once. Each keeps 4 to 6 MB of scratch for its next
    call (more where one row has more than 512 Ki weights).

    Args:
        rows: float32, float16 or bfloat16 [n, K], not written to; a memory map, unaligned or
            read-only memory will do. Contiguous rows are fastest.
        format: bits, block and symmetry.
        scales_dtype: float32 or float16.
        out: C-contiguous arrays to write to, shaped and typed like the result.
        first_row: the row of the whole matrix that `rows[0]` is, for messages.

    Returns:
        `(packed, scales, zero_points)` for these rows, shapes as in `quant.blocks`;
        `zero_points` is None when symmetric.

    Raises:
        TypeError: for another dtype of the rows or the scales.
        ValueError: when rows is no matrix, `out` does not fit, or a row holds NaN, infinity or
            weights whose scale `scales_dtype` cannot hold.
    """
    check_weight(rows)
    dtype = check_scales_dtype(scales_dtype)
    n, k = rows.shape
    if out is None:
        out = _empty(n, k, format, dtype)
    else:
        _check_out(out, n, k, format, dtype)
    packed, scales, zero_points = out

    count = format.blocks(k)
    zeros = np.empty((n, count), np.uint8) if zero_points is not None else None
    step = max(1, PIECE_BYTES // (4 * count * format.block))
    piece: _Piece | None = None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, n, step):
            stop = min(start + step, n)
            if piece is None or piece.rows != stop - start:
                piece = _Piece.take(stop - start, count, format)
            _load(rows[start:stop], piece)
            _find_scales(piece, format, dtype, first_row + start)
            scales[start:stop] = piece.scale.reshape(-1, count)
            _store_codes(piece, format, packed[start:stop])
            if zeros is not None:
                zeros[start:stop] = piece.zero.reshape(-1, count)
    if zero_points is not None and zeros is not None:
        zero_points[...] = pack(zeros, format.bits)
    return out


def quantize_parallel(
    weight: npt.NDArray[Any],
    format: BlockFormat,
    *,
    threads: int | None = None,
    scales_dtype: npt.DTypeLike = np.float32,
) -> Blocks:
    """Quantize a matrix on several threads; byte for byte what `quantize` gives.

    Args:
        weight: float32, float16 or bfloat16 [N, K].
        format: bits, block and symmetry.
        threads: how many; the CPUs when None.
        scales_dtype: float32 or float16.

    Returns:
        The blocks, shapes as in `quant.blocks`.

    Raises:
        TypeError, ValueError: as `quantize_rows`; of several bad rows, the first is named.
    """
    check_weight(weight)
    n, k = weight.shape
    out = packed, scales, zero_points = _empty(n, k, format, check_scales_dtype(scales_dtype))
    threads = threads or os.cpu_count() or 1

    def run(start: int) -> None:
        chunk = slice(start, start + step)
        part = packed[chunk], scales[chunk], None if zero_points is None else zero_points[chunk]
        quantize_rows(weight[chunk], format, scales_dtype=scales_dtype, out=part, first_row=start)

    # Several chunks a thread, so that one slow thread does not hold up the rest.
    step = max(1, -(-n // (8 * threads)))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, start) for start in range(0, n, step)]:
            done.result()
    return Blocks(*out, format, k)


class _Scratch(threading.local):
    """Memory of one thread, by purpose; it grows to the largest piece and is used again."""

    def __init__(self) -> None:
        self.memory: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, purpose: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised array that lives until the thread asks for the purpose again."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self.memory.get(purpose)
        if memory is None or memory.nbytes < nbytes:
            memory = self.memory[purpose] = np.empty(nbytes, np.uint8)
        return memory[:nbytes].view(dtype).reshape(shape)


_scratch = _Scratch()


@dataclass(frozen=True)
class _Piece:
    """Scratch for a piece of rows with B blocks in all, of Q quads each."""

    rows: int
    values: npt.NDArray[np.float32]  # [Q, B*4] turned weights, then codes
    narrow: npt.NDArray[np.uint64]  # [Q, B] turned quads of 16-bit weights
    codes: npt.NDArray[np.uint8]  # [Q, B*4]
    nibbles: npt.NDArray[np.uint16]  # [Q, B*2] pairs of codes
    pairs: npt.NDArray[np.uint8]  # [Q, B*2] pairs of codes as bytes
    quad: npt.NDArray[np.float32]  # [B, 4] a number for each weight of a quad
    high: npt.NDArray[np.float32]  # [B]
    low: npt.NDArray[np.float32]  # [B]
    scale: npt.NDArray[np.float32]  # [B]
    reciprocal: npt.NDArray[np.float32]  # [B]
    zero: npt.NDArray[np.float32]  # [B]

    @classmethod
    def take(cls, rows: int, count: int, format: BlockFormat) -> _Piece:
        """The calling thread's scratch, cut for rows of `count` blocks."""
        quads, blocks = format.block // QUAD, rows * count
        size = quads * blocks
        values = _scratch.take("values", (quads, blocks * QUAD), np.float32)
        narrow = _scratch.take("narrow", (quads, blocks), np.uint64)
        # Codes lie where the 16-bit weights were, pairs of codes where the weights were.
        spent, emptied = narrow.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8)
        high, low, scale, reciprocal, zero = _scratch.take("blocks", (5, blocks), np.float32)
        return cls(
            rows,
            values,
            narrow,
            codes=spent[: 4 * size].reshape(quads, blocks * 4),
            nibbles=emptied[: 4 * size].view(np.uint16).reshape(quads, blocks * 2),
            pairs=emptied[4 * size : 6 * size].reshape(quads, blocks * 2),
            quad=_scratch.take("quad", (blocks, QUAD), np.float32),
            high=high,
            low=low,
            scale=scale,
            reciprocal=reciprocal,
            zero=zero,
        )


def _load(rows: npt.NDArray[Any], piece: _Piece) -> None:
    """Turn rows [n, K] of any dtype into `piece.values` as float32, padded with zeros."""
    quads, blocks = piece.narrow.shape
    n, k = rows.shape
    padded = quads * blocks * QUAD // n
    if padded != k:
        whole = _scratch.take("padded", (n, padded), rows.dtype)
        whole[:, :k] = rows
        whole[:, k:] = 0
        rows = whole
    elif not rows.flags.c_contiguous:
        whole = _scratch.take("padded", (n, k), rows.dtype)
        whole[...] = rows
        rows = whole

    if rows.dtype == np.float32:
        # complex128 only as 16 bytes that NumPy moves in one go.
        turned = piece.values.view(np.complex128)
        np.copyto(turned, rows.view(np.complex128).reshape(blocks, quads).T)
        return
    np.copyto(piece.narrow, rows.view(np.uint64).reshape(blocks, quads).T)
    if rows.dtype == np.float16:
        np.copyto(piece.values, piece.narrow.view(np.float16))
    else:
        # bfloat16 is the upper half of a float32.
        wide = piece.values.view(np.uint32)
        np.copyto(wide, piece.narrow.view(np.uint16))
        np.left_shift(wide, 16, out=wide)


def _find_scales(piece: _Piece, format: BlockFormat, dtype: np.dtype[Any], first_row: int) -> None:
    """From `piece.values`, set scale, reciprocal and (asymmetric) zero."""
    high, low, scale, reciprocal = piece.high, piece.low, piece.scale, piece.reciprocal
    _reduce(np.maximum, piece, high)
    _reduce(np.minimum, piece, low)
    if format.symmetric:
        np.negative(low, out=scale)
        np.copyto(low, high, where=high > scale)
        np.divide(low, np.float32(-format.middle), out=scale)
    else:
        np.maximum(high, np.float32(0), out=high)
        np.minimum(low, np.float32(0), out=low)
        np.subtract(high, low, out=scale)
        np.divide(scale, np.float32(format.max_code), out=scale)
    if dtype != np.float32:
        scale[...] = scale.astype(dtype)
    check_scales(scale.reshape(piece.rows, -1), first_row=first_row, dtype=dtype)
    vanishing = np.abs(scale) < np.finfo(np.float32).tiny
    scale[vanishing] = 0
    np.divide(np.float32(1), scale, out=reciprocal)
    reciprocal[vanishing] = 0
    if not format.symmetric:
        np.negative(low, out=low)
        np.multiply(low, reciprocal, out=piece.zero)
        np.rint(piece.zero, out=piece.zero)
        np.clip(piece.zero, 0, format.max_code, out=piece.zero)


def _reduce(extremum: np.ufunc, piece: _Piece, out: npt.NDArray[np.float32]) -> None:
    """The largest or smallest weight of each block."""
    quad = piece.quad
    extremum.reduce(piece.values, axis=0, out=quad.reshape(-1))
    extremum(quad[:, 0], quad[:, 1], out=out)
    extremum(out, quad[:, 2], out=out)
    extremum(out, quad[:, 3], out=out)


def _store_codes(piece: _Piece, format: BlockFormat, packed: npt.NDArray[np.uint8]) -> None:
    """Turn weights, scales and zeros into codes, packed and turned back."""
    values, codes = piece.values, piece.codes
    quads, blocks = piece.narrow.shape
    for lane in range(QUAD):
        piece.quad[:, lane] = piece.reciprocal
    np.multiply(values, piece.quad.reshape(-1), out=values)
    if format.symmetric:
        np.add(values, ROUNDER + np.float32(format.middle), out=values)
    else:
        for lane in range(QUAD):
            np.add(piece.zero, ROUNDER, out=piece.quad[:, lane])
        np.add(values, piece.quad.reshape(-1), out=values)
    np.clip(values, ROUNDER, ROUNDER + np.float32(format.max_code), out=values)
    np.copyto(codes, values.view(np.uint32), casting="unsafe")  # keeps the low byte
    if format.bits == 8:
        np.copyto(
            packed.reshape(-1).view(np.uint32).reshape(blocks, quads), codes.view(np.uint32).T
        )
        return
    if format.bits == 2:
        # A quad is the 32-bit number c0 | c1 << 8 | c2 << 16 | c3 << 24; its byte is
        # c0 | c1 << 2 | c2 << 4 | c3 << 6. No code reaches the low byte of a shift but its own.
        quad = codes.view(np.uint32)
        joined = piece.values.reshape(-1).view(np.uint32)[: quad.size].reshape(quad.shape)
        np.right_shift(quad, 6, out=joined)
        np.bitwise_or(joined, quad, out=joined)
        np.right_shift(quad, 12, out=quad)
        np.bitwise_or(joined, quad, out=joined)
        np.right_shift(quad, 6, out=quad)
        np.bitwise_or(joined, quad, out=joined)
        np.copyto(packed.reshape(blocks, quads), joined.T, casting="unsafe")  # the low byte
        return
    # A pair (c0, c1) is the 16-bit number c0 | c1 << 8; its byte is c0 | c1 << 4.
    pairs = codes.view(np.uint16)
    np.right_shift(pairs, 4, out=piece.nibbles)
    np.bitwise_or(piece.nibbles, pairs, out=piece.nibbles)
    np.copyto(piece.pairs, piece.nibbles, casting="unsafe")
    turned = piece.pairs.view(np.uint16).T
    np.copyto(packed.reshape(-1).view(np.uint16).reshape(blocks, quads), turned)


def _empty(n: int, k: int, format: BlockFormat, dtype: np.dtype[Any]) -> RowArrays:
    """Arrays for the blocks of an [n, k] matrix."""
    zero_points_shape = format.zero_points_shape(n, k)
    return (
        np.empty(format.packed_shape(n, k), np.uint8),
        np.empty(format.scales_shape(n, k), dtype),
        None if zero_points_shape is None else np.empty(zero_points_shape, np.uint8),
    )


def _check_out(
    out: RowArrays,
    n: int,
    k: int,
    format: BlockFormat,
    dtype: np.dtype[Any],
) -> None:
    """Refuse arrays to write to that do not fit."""
    wanted = (
        ("packed", format.packed_shape(n, k), np.dtype(np.uint8)),
        ("scales", format.scales_shape(n, k), dtype),
        ("zero_points", format.zero_points_shape(n, k), np.dtype(np.uint8)),
    )
    for array, (name, shape, kind) in zip(out, wanted, strict=True):
        fits = (
            shape is None
            if array is None
            else array.shape == shape and array.dtype == kind and array.flags.c_contiguous
        )
        if not fits:
            found = "None" if array is None else f"{array.dtype} {array.shape}"
            raise ValueError(
                f"quantize_rows: out {name} is {found}, must be C-contiguous {kind} {shape}."
            )
