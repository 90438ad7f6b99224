"""Weighted search: a scale and a zero point for each block that lose less than rounding's.

Rounding takes the scale from the two extremes of a block w. The search minimizes instead

    error(scale, zero, codes) = sum(d * (w - (codes - zero) * scale)**2)

where d >= 0 says how much each input channel matters: the mean square of the channel's
activations (the diagonal of the Hessian), or 1. It tries the shrunken ranges of `CANDIDATES`.
For each one:

    range        gives scale and zero as in `quant.definition`, and codes by rounding
    refit        scale = sum(d * w * c) / sum(d * c * c) with c = codes - zero: the best scale
                 for these codes; rounded as it will be stored
    codes        again by rounding, for the scale as stored

and keeps the result with the least error. The first candidate is rounding itself, and at the end
every block is compared with rounding in float64: **no block is worse than rounding** under its d.
Blocks for which nothing is better keep the bytes of `quantize`. That includes blocks whose
squared errors float32 cannot hold, weights beyond 1e18 or below 1e-18.

`search_block` is the definition for one block; `search` computes the same for a matrix. Sums in
another order may choose between two candidates that are equally good, so their bytes may differ.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import BlockFormat, Blocks, dequantize, pack, unpack
from quant.definition import quantize
from quant.rows import quantize_parallel

__all__ = ["CANDIDATES", "check_importance", "search", "search_block"]

CANDIDATES: dict[tuple[int, bool], tuple[tuple[float, float], ...]] = {
    (8, True): ((1, -1), (1, 1), (0.98, -1), (0.96, -1)),
    (8, False): ((1, 1), (0.98, 0.98), (0.96, 0.96)),
    (4, True): (
        *((f, -1) for f in (1, 1.05, 0.96, 0.92, 0.88, 0.84, 0.78)),
        *((f, 1) for f in (1, 0.94, 0.88, 0.82)),
    ),
    (4, False): (
        *((f, f) for f in (1, 1.03, 0.95, 0.9, 0.85, 0.8, 0.7)),
        *((1, 0.85), (0.85, 1), (0.92, 0.75), (0.75, 0.92)),
    ),
    (2, True): (
        *((f, -1) for f in (1, 1.15, 0.85, 0.7, 0.55, 0.4)),
        *((f, 1) for f in (0.85, 0.7, 0.55, 0.4, 0.3)),
    ),
    (2, False): (
        *((f, f) for f in (1, 1.1, 0.85, 0.7, 0.6, 0.5, 0.4)),
        *((1, 0.7), (0.7, 1), (0.75, 0.5), (0.5, 0.75), (0.6, 0.4), (0.4, 0.6)),
    ),
}
"""Ranges to try, by bits and symmetry; the first is rounding.

Symmetric: `(factor, end)`, the weight of largest magnitude times the factor goes to code 0
(end -1) or to the largest code (end 1). Asymmetric: `(low, high)`, the factors of both extremes.
"""

# float32 weights that a thread works on at a time, some ten arrays of this size.
PIECE = 1 << 18

Floats = npt.NDArray[np.float32]


def search(
    weight: npt.NDArray[Any],
    format: BlockFormat,
    importance: npt.NDArray[Any] | None = None,
    *,
    scales_dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
) -> Blocks:
    """Quantize a matrix with searched scales and zero points; the module docstring says how.

    Args:
        weight: float32, float16 or bfloat16 [N, K].
        format: bits, block and symmetry.
        importance: d, float [K], finite and not negative; all 1 when None.
        scales_dtype: float32 or float16; codes are chosen for scales as stored.
        threads: how many; the CPUs when None.

    Returns:
        The blocks, shapes as in `quant.blocks`.

    Raises:
        TypeError, ValueError: as `quantize`, and for an importance that is not as described.
    """
    rounded = quantize_parallel(weight, format, threads=threads, scales_dtype=scales_dtype)
    n, k = weight.shape
    d = check_importance(importance, k)
    step = max(1, PIECE // (format.blocks(k) * format.block))

    def run(start: int) -> None:
        _improve(weight[start : start + step], d, rounded.rows(start, start + step))

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(run, range(0, n, step)))
    return rounded


def search_block(
    weights: npt.NDArray[np.float32],
    importance: npt.NDArray[np.float32],
    format: BlockFormat,
    scales_dtype: npt.DTypeLike = np.float32,
) -> tuple[np.float32, int, npt.NDArray[np.uint8]]:
    """The definition, for one block.

    Args:
        weights: float32 [block].
        importance: float32 [block].
        format: bits and symmetry.
        scales_dtype: float32 or float16.

    Returns:
        `(scale, zero_point, codes)`, the scale as stored and the codes uint8 [block].
    """
    top = np.float32(format.max_code)
    tiny = np.finfo(np.float32).tiny
    exact_d, exact_w = importance.astype(np.float64), weights.astype(np.float64)

    def error(scale: Any, zero: int, codes: Any) -> float:
        restored = (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return float((exact_d * (exact_w - restored) ** 2).sum())

    rounded = quantize(weights[None], format, scales_dtype=scales_dtype)
    zero = format.middle
    if rounded.zero_points is not None:
        zero = int(unpack(rounded.zero_points, format.bits, 1)[0, 0])
    codes = unpack(rounded.packed, format.bits, format.block)[0, 0]
    best = np.float32(rounded.scales[0, 0]), zero, codes
    least = error(*best)

    low, high = min(weights.min(), np.float32(0)), max(weights.max(), np.float32(0))
    extreme = high if high > -low else low
    for first, second in CANDIDATES[format.bits, format.symmetric]:
        with np.errstate(all="ignore"):
            if format.symmetric:
                end = -format.middle if second < 0 else format.middle - 1
                scale = extreme * np.float32(first) / np.float32(end)
                zero = format.middle
            else:
                lowest = low * np.float32(first)
                scale = (high * np.float32(second) - lowest) / top
                zero = 0
                if scale >= tiny:
                    zero = int(np.rint(-lowest / scale).clip(0, top))
            if not tiny <= abs(scale) < np.inf:
                continue
            c = np.rint(weights / scale + np.float32(zero)).clip(0, top) - np.float32(zero)
            scale = (importance * weights * c).sum() / (importance * c * c).sum()
            scale = np.float32(np.dtype(scales_dtype).type(scale))
            if not tiny <= abs(scale) < np.inf:
                continue
            codes = np.rint(weights / scale + np.float32(zero)).clip(0, top).astype(np.uint8)
            found = error(scale, zero, codes)
        if found < least:
            best, least = (scale, zero, codes), found
    return best


def check_importance(importance: npt.NDArray[Any] | None, k: int) -> Floats:
    """Importance as float32 [k].

    Raises:
        ValueError: for another shape, a negative number, NaN or infinity.
    """
    if importance is None:
        return np.ones(k, np.float32)
    found = np.asarray(importance, np.float32)
    if found.shape != (k,):
        raise ValueError(f"importance has shape {found.shape}, the weight needs ({k},).")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError("importance holds a negative number, NaN or infinity.")
    return found


def _improve(rows: npt.NDArray[Any], importance: Floats, out: Blocks) -> None:
    """Replace blocks of `out`, which are rounding's, wherever a candidate is better.

    Blocks run along the last axis, as in `quant.rows`: `w[block, n * count]`.
    """
    format, n, count = out.format, out.n, out.format.blocks(out.k)
    padded = np.zeros((n, count * format.block), np.float32)
    padded[:, : out.k] = rows
    w = np.ascontiguousarray(padded.reshape(-1, format.block).T)
    padded = np.zeros((1, count * format.block), np.float32)
    padded[:, : out.k] = importance
    d = np.tile(padded.reshape(count, format.block).T, (1, n))
    dw = d * w

    plain_scale = out.scales.reshape(-1).astype(np.float32)
    if out.zero_points is None:
        plain_zero = np.full(n * count, format.middle, np.float32)
    else:
        zeros = np.ascontiguousarray(unpack(out.zero_points, format.bits, count))
        plain_zero = zeros.reshape(-1).astype(np.float32)
    whole = Blocks(out.packed, out.scales, out.zero_points, format, count * format.block)
    plain = dequantize(whole).reshape(-1, format.block)
    plain_error = _exact_error(w, d, np.ascontiguousarray(plain.T))

    scale, zero = plain_scale.copy(), plain_zero.copy()
    low, high = np.minimum(w.min(0), np.float32(0)), np.maximum(w.max(0), np.float32(0))
    extreme = np.where(high > -low, high, low)
    c, product = np.empty_like(w), np.empty_like(w)
    with np.errstate(all="ignore"):
        least = plain_error.astype(np.float32)
        for first, second in CANDIDATES[format.bits, format.symmetric]:
            if format.symmetric:
                end = -format.middle if second < 0 else format.middle - 1
                s, z = extreme * np.float32(first) / np.float32(end), zero
            else:
                lowest = low * np.float32(first)
                s = (high * np.float32(second) - lowest) / np.float32(format.max_code)
                z = np.rint(-lowest / s).clip(0, format.max_code)
            _centre(w, s, z, format, c)
            # The block's error is d*w*w - 2*s*above + s*s*below, least at s = above / below.
            above = np.multiply(dw, c, out=product).sum(0)
            np.multiply(c, c, out=product)
            s = above / np.multiply(product, d, out=product).sum(0)
            s = s.astype(out.scales.dtype).astype(np.float32)
            _centre(w, s, z, format, c)
            c *= s
            c -= w
            c *= c
            error = np.multiply(c, d, out=product).sum(0)
            better = (error < least) & (np.abs(s) >= np.finfo(np.float32).tiny) & np.isfinite(s)
            least[better], scale[better], zero[better] = error[better], s[better], z[better]

        changed = np.flatnonzero((scale != plain_scale) | (zero != plain_zero))
        if not len(changed):
            return
        w, d, scale, zero = w[:, changed], d[:, changed], scale[changed], zero[changed]
        c = np.empty_like(w)
        _centre(w, scale, zero, format, c)
        # The margin is far above what the order of a float64 sum can change.
        keep = _exact_error(w, d, c * scale) < plain_error[changed] * (1 - 1e-9)
    changed, c, scale, zero = changed[keep], c[:, keep], scale[keep], zero[keep]
    out.packed.reshape(n * count, -1)[changed] = pack((c + zero).T.astype(np.uint8), format.bits)
    out.scales.reshape(-1)[changed] = scale.astype(out.scales.dtype)
    if out.zero_points is not None:
        zeros.reshape(-1)[changed] = zero.astype(np.uint8)
        out.zero_points[...] = pack(zeros, format.bits)


def _centre(w: Floats, scale: Floats, zero: Floats, format: BlockFormat, out: Floats) -> None:
    """Write `code - zero` [block, blocks] to `out`, where the code is nearest to w."""
    np.divide(w, scale, out=out)
    out += zero
    np.rint(out, out=out)
    np.clip(out, 0, format.max_code, out=out)
    out -= zero


def _exact_error(w: Floats, d: Floats, restored: Floats) -> npt.NDArray[np.float64]:
    """The error of each block, in float64."""
    difference = w.astype(np.float64) - restored
    difference *= difference
    error: npt.NDArray[np.float64] = np.einsum("bn,bn->n", difference, d)
    return error
