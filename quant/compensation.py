"""GPTQ: round column by column, and let later columns make up for the error of earlier ones.

With E = W - W' the error of the quantized matrix and H the Hessian of `quant.hessian`, GPTQ
lowers trace(E @ H @ E.T), the mean squared error of the layer's output, instead of the error of
the weights. (Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization
for Generative Pre-trained Transformers", 2022.)

`gptq_definition` is the textbook form: quantize a column, spread its error over the columns not
yet quantized by means of inv(H), eliminate the column from inv(H). `gptq` gives the same without
an inverse. With H = R @ R.T, R upper triangular, the loss of a row is

    |e @ R|**2 = sum over j of (e[j] * R[j, j] + sum over i < j of e[i] * R[i, j])**2

so column j is best rounded at `w[j] + sum(e[i] * R[i, j] for i < j) / R[j, j]`: weights are only
read, errors only written. For a panel of columns, the sum over all earlier panels is one matrix
product, and so is nearly all of the work.

Blocks stay consecutive along K whatever the order of processing. Scales and zero points are
chosen before the first column (`quant.weighted`, under the damped diagonal), as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import BlockFormat, Blocks, pack, unpack
from quant.definition import check_weight
from quant.hessian import Factor
from quant.weighted import search

__all__ = ["gptq", "gptq_definition"]

# Columns whose errors are summed one by one before a matrix product takes them together.
PANEL = 64

# Bytes of each of the three float32 arrays that a pass over some rows works on.
ROWS_BYTES = 32 << 20


def gptq(
    weight: npt.NDArray[Any],
    factor: Factor,
    format: BlockFormat,
    *,
    scales_dtype: npt.DTypeLike = np.float32,
    grid: Blocks | None = None,
    threads: int | None = None,
) -> Blocks:
    """Quantize a matrix so that its output on the factored Hessian's inputs changes least.

    Time: 2 * N * K**2 floating-point operations in float32 matrix products, on the threads of
    NumPy's BLAS. Memory beside the arguments and the result: about 4 times `ROWS_BYTES`.

    Args:
        weight: float32, float16 or bfloat16 [N, K].
        factor: of the Hessian [K, K], from `quant.factor`; several matrices with the same inputs
            share it. It says how much damping was needed.
        format: bits, block and symmetry.
        scales_dtype: float32 or float16; errors are those of scales as stored.
        grid: blocks whose scales and zero points are to be used; searched when None.
        threads: for the search; the CPUs when None.

    Returns:
        The blocks, shapes as in `quant.blocks`.

    Raises:
        TypeError, ValueError: as `quantize`, and when the factor or grid is of another shape.
    """
    grid = _check(weight, factor, format, scales_dtype, grid, threads)
    n, k = weight.shape
    packed = np.empty(grid.packed.shape, np.uint8)
    step = max(1, ROWS_BYTES // (4 * k))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        codes = _compensate(weight[rows], factor, grid.rows(rows.start, rows.stop))
        packed[rows] = pack(codes, format.bits)
    return Blocks(packed, grid.scales, grid.zero_points, format, k)


def _compensate(rows: npt.NDArray[Any], factor: Factor, grid: Blocks) -> npt.NDArray[np.uint8]:
    """Codes [n, blocks, block] of some rows; padding gets the zero point."""
    format, (n, k), count = grid.format, rows.shape, grid.format.blocks(grid.k)
    # Columns are rows here, contiguous, in the order of processing.
    w = np.ascontiguousarray(rows.T).astype(np.float32, copy=False)[factor.order]
    error = np.empty_like(w)
    codes = np.empty((count * format.block, n), np.uint8)
    scale = np.ascontiguousarray(grid.scales.T).astype(np.float32)
    if grid.zero_points is None:
        zero = np.full((count, n), format.middle, np.float32)
    else:
        zeros = unpack(grid.zero_points, format.bits, count)
        zero = np.ascontiguousarray(zeros.T).astype(np.float32)
    # A block of zeros has scale 0: its codes are the zero point.
    reciprocal = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes[k:] = zero[-1].astype(np.uint8)

    upper, top = factor.upper, np.float32(format.max_code)
    code = np.empty(n, np.float32)
    for start in range(0, k, PANEL):
        stop = min(start + PANEL, k)
        owed = upper[:start, start:stop].T @ error[:start]
        for i in range(start, stop):
            column = int(factor.order[i])
            block = column // format.block
            target = owed[i - start]
            if i > start:
                target += upper[start:i, i] @ error[start:i]
            target /= upper[i, i]
            target += w[i]
            np.multiply(target, reciprocal[block], out=code)
            code += zero[block]
            np.rint(code, out=code)
            np.clip(code, 0, top, out=code)
            codes[column] = code
            code -= zero[block]
            code *= scale[block]
            np.subtract(w[i], code, out=error[i])
    return np.ascontiguousarray(codes.T).reshape(n, count, format.block)


def gptq_definition(
    weight: npt.NDArray[Any],
    hessian: npt.NDArray[Any],
    order: npt.NDArray[Any],
    grid: Blocks,
) -> Blocks:
    """GPTQ as its paper has it, in float64, with an inverse; slow, to be read and compared with.

    Args:
        weight: float [N, K].
        hessian: float [K, K], already damped, positive definite.
        order: the columns in order of processing.
        grid: blocks that give scales and zero points.

    Returns:
        The blocks.
    """
    format, count = grid.format, grid.format.blocks(grid.k)
    w = weight.astype(np.float64)
    inverse = np.linalg.inv(hessian.astype(np.float64))
    codes = unpack(grid.packed, format.bits, format.block).reshape(len(w), -1)
    zeros = np.full((len(w), count), format.middle, np.uint8)
    if grid.zero_points is not None:
        zeros = unpack(grid.zero_points, format.bits, count)
    for column in order:
        scale = grid.scales[:, column // format.block].astype(np.float64)
        zero = zeros[:, column // format.block].astype(np.float64)
        steps = np.divide(w[:, column], scale, out=np.zeros(len(w)), where=scale != 0)
        code = np.rint(steps + zero).clip(0, format.max_code)
        codes[:, column] = code
        error = w[:, column] - (code - zero) * scale
        # The column itself moves to its quantized value, the others make up for it, and those
        # quantized before stay: their rows of the inverse are 0.
        w -= np.outer(error, inverse[column]) / inverse[column, column]
        inverse -= np.outer(inverse[column], inverse[column]) / inverse[column, column]
        inverse[column] = inverse[:, column] = 0
    packed = pack(codes.reshape((*grid.packed.shape[:2], format.block)), format.bits)
    return Blocks(packed, grid.scales, grid.zero_points, format, grid.k)


def _check(
    weight: npt.NDArray[Any],
    factor: Factor,
    format: BlockFormat,
    scales_dtype: npt.DTypeLike,
    grid: Blocks | None,
    threads: int | None,
) -> Blocks:
    """The grid to use.

    Raises:
        TypeError, ValueError: as `gptq`.
    """
    check_weight(weight)
    n, k = weight.shape
    if factor.k != k:
        raise ValueError(f"gptq: Hessian of {factor.k} channels, the weight has {k}.")
    if grid is None:
        return search(weight, format, factor.diagonal, scales_dtype=scales_dtype, threads=threads)
    if (grid.n, grid.k, grid.format) != (n, k, format) or grid.scales.dtype != scales_dtype:
        raise ValueError(
            f"gptq: grid is {grid.scales.dtype} {(grid.n, grid.k)} in {grid.format}, "
            f"must be {np.dtype(scales_dtype)} {(n, k)} in {format}."
        )
    return grid
