"""Eight bits with one scale for each row of a weight: the weights of integer matrix products.

A product of integers can sum a whole row before it scales the sum, which `MatMulNBits` cannot do
across blocks. ONNX Runtime's `MatMulIntegerToFloat` takes such weights, signed and transposed.

x86 processors without VNNI add the products of two neighbours, an unsigned 8-bit activation times a
signed weight each, in 16 bits (`vpmaddubsw`), and saturate. A scale is therefore large enough that
no two neighbours' codes add up to more than 128: 255 * 128 fits into 16 bits, and sums are exact on
every processor. onnxruntime's own remedy, `session.x64quantprecision`, stores weights without a
sign, whose kernels are several times slower where there is VNNI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.blocks import BlockFormat, Blocks

__all__ = ["LARGEST", "Channels", "quantize_channels"]

LARGEST = 127
"""The largest code, and the negative of the least: -128 is not used, so that 0 is in the middle."""


@dataclass(frozen=True)
class Channels:
    """A quantized weight `[N, K]`: row n is `codes[n] * scales[n]`.

    Attributes:
        codes: int8 `[N, K]`.
        scales: float32 `[N]`, positive.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    def weight(self) -> npt.NDArray[np.float32]:
        """The float32 numbers `[N, K]` that it stands for."""
        return self.codes * self.scales[:, None]

    def blocks(self) -> Blocks:
        """The same numbers as symmetric blocks of 8 bits that repeat the scale of their row."""
        n, k = self.codes.shape
        form = BlockFormat(8, 16, symmetric=True)
        padded = np.pad(self.codes, ((0, 0), (0, -k % form.block)))
        codes = (padded.astype(np.int16) + form.middle).astype(np.uint8)
        packed = codes.reshape(n, -1, form.block)
        scales = np.repeat(self.scales[:, None], packed.shape[1], axis=1)
        return Blocks(packed, scales, None, form, k)


def quantize_channels(weight: npt.NDArray[Any]) -> Channels:
    """Round to nearest, half to even, in the finest steps in which no two neighbours overflow.

    Neighbours are columns 2j and 2j + 1. The largest code of a row is 127 at most, and two
    neighbours' codes of one sign add up to 128 at most.

    Args:
        weight: `[N, K]` of any float dtype, finite.

    Returns:
        A row of zeros has the scale 1.

    Raises:
        ValueError: a number is not finite, or the sum of two neighbours.
    """
    rows = np.asarray(weight, np.float32)
    even, odd = rows[:, 0::2], rows[:, 1::2]
    together = np.abs(even[:, : odd.shape[1]] + odd).max(axis=1, initial=0)
    largest = np.maximum(np.abs(rows).max(axis=1, initial=0), together)
    if not np.isfinite(largest).all():
        raise ValueError("quantize_channels: a number, or a sum of neighbours, is not finite.")
    scales = largest / np.float32(LARGEST)
    scales[scales == 0] = 1
    codes = np.rint(rows / scales[:, None])
    return Channels(np.clip(codes, -LARGEST, LARGEST).astype(np.int8), scales)
