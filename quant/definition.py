"""Round-to-nearest block quantization, written to be read: the definition.

For a block w of float32 weights, `q = 2**bits - 1`, every operation in float32:

    symmetric    m     = the weight of largest magnitude; the negative one on a tie
                 scale = m / -2**(bits-1)
                 zero  = 2**(bits-1)
    asymmetric   low, high = min(w, 0), max(w, 0)
                 scale = (high - low) / q
                 zero  = clip(rint(-low * r), 0, q)
    both         r     = 1 / scale, or 0 where scale is 0
                 code  = clip(rint(w * r + zero), 0, q)

The symmetric scale carries the sign that puts the largest weight on code 0, the end of the
range with one step more; ONNX Runtime and the Q4_0 format of ggml do the same. It beats
`max(abs(w)) / 7` in weight error and in perplexity at the same size.

* Rounding: `rint` is half to even, of the exact sum `w * r + zero` once `w * r` has been
  rounded to float32. Multiplying by the reciprocal instead of dividing can only move a weight
  that lies within one part in 2**22 of the middle between two codes, where both are as good.
* Scales are rounded to `scales_dtype` first and the codes are chosen for the rounded scale.
* Blocks of zeros, and blocks whose scale is below the smallest normal float32 (2**-126), get
  scale +0 and dequantize to 0: the reciprocal of a normal scale is always finite. With float16
  scales, a scale that rounds to 0 (below 2**-25) does the same.
* A constant block c is exact in the symmetric format, and exact but for the rounding of
  `scale * q` in the asymmetric one. Zero is exact in both.
* NaN, infinity and a scale beyond `scales_dtype` are a `ValueError` that names the row.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.blocks import SCALE_DTYPES, BlockFormat, Blocks, pack

__all__ = ["check_scales", "check_scales_dtype", "check_weight", "quantize"]

WEIGHT_DTYPES = (
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
)


def quantize(
    weight: npt.NDArray[Any],
    format: BlockFormat,
    *,
    scales_dtype: npt.DTypeLike = np.float32,
) -> Blocks:
    """Quantize a matrix as the module docstring defines.

    `quantize_rows` and `quantize_parallel` return the same bytes faster; this function is what
    they are tested against.

    Args:
        weight: float32, float16 or bfloat16 [N, K].
        format: bits, block and symmetry.
        scales_dtype: float32 or float16.

    Returns:
        The blocks, shapes as in `quant.blocks`.

    Raises:
        TypeError: for another dtype of the weight or the scales.
        ValueError: when the weight is no matrix, or a row holds NaN, infinity or weights whose
            scale `scales_dtype` cannot hold.
    """
    check_weight(weight)
    dtype = check_scales_dtype(scales_dtype)
    n, k = weight.shape
    count = format.blocks(k)
    padded = np.zeros((n, count * format.block), np.float32)
    padded[:, :k] = weight
    blocks = padded.reshape(n, count, format.block)

    low, high = blocks.min(-1), blocks.max(-1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if format.symmetric:
            scales = np.where(high > -low, high, low) / np.float32(-format.middle)
        else:
            low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
            scales = (high - low) / np.float32(format.max_code)
        scales = scales.astype(dtype).astype(np.float32)
        check_scales(scales, first_row=0, dtype=dtype)
        vanishing = np.abs(scales) < np.finfo(np.float32).tiny
        scales[vanishing] = 0
        reciprocal = np.where(vanishing, np.float32(0), np.float32(1) / scales)

    if format.symmetric:
        zero_points = np.full((n, count), format.middle, np.uint8)
    else:
        zero_points = np.rint(-low * reciprocal).clip(0, format.max_code).astype(np.uint8)
    # float64 holds the sum of a float32 and a zero point without rounding.
    steps = (blocks * reciprocal[..., None]).astype(np.float64) + zero_points[..., None]
    codes = np.rint(steps).clip(0, format.max_code).astype(np.uint8)
    return Blocks(
        pack(codes, format.bits),
        scales.astype(dtype),
        None if format.symmetric else pack(zero_points, format.bits),
        format,
        k,
    )


def check_weight(weight: npt.NDArray[Any]) -> None:
    """Refuse what is not a matrix of float32, float16 or bfloat16.

    Raises:
        TypeError: for another dtype.
        ValueError: for another rank, or no columns.
    """
    if weight.dtype not in WEIGHT_DTYPES:
        raise TypeError(f"weight is {weight.dtype}, must be float32, float16 or bfloat16.")
    if weight.ndim != 2 or weight.shape[1] == 0:
        raise ValueError(f"weight has shape {weight.shape}, must be [N, K] with K > 0.")


def check_scales_dtype(scales_dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype of the scales.

    Raises:
        TypeError: unless it is float32 or float16.
    """
    dtype = np.dtype(scales_dtype)
    if dtype not in SCALE_DTYPES:
        raise TypeError(f"scales_dtype is {dtype}, must be float32 or float16.")
    return dtype


def check_scales(scales: npt.NDArray[np.float32], *, first_row: int, dtype: np.dtype[Any]) -> None:
    """Refuse scales [n, blocks] that are not finite; every NaN or infinity of a block ends here.

    Args:
        scales: the scales after rounding to their dtype.
        first_row: the row of the weight that `scales[0]` belongs to, for the message.
        dtype: the dtype of the scales, for the message.

    Raises:
        ValueError: naming the first such row and block.
    """
    finite = np.isfinite(scales)
    if finite.all():
        return
    row, block = (int(index) for index in np.argwhere(~finite)[0])
    raise ValueError(
        f"weight row {first_row + row}, block {block}: holds NaN or infinity, "
        f"or weights too large for a {dtype} scale."
    )
