"""Bicubic resampling of frames of eight bits, number for number as PyTorch does it.

The video processors of transformers resize with `torch.nn.functional.interpolate`, bicubic with
antialiasing, on uint8. It works in integers: first along rows, then along columns, with weights of
16 bits and a rounding to eight bits after each. Pillow, which resizes pictures, keeps more bits of
the weights and comes out differently by one now and then.

Source: `UpSampleKernel.cpp` of PyTorch, `compute_index_ranges_int16_weights`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

A = -0.5
"""The parameter of the cubic kernel, as with Pillow."""
MOST_BITS = 22
"""Fractional bits of a weight, at most: fewer where the largest one would not fit into 16 bits."""

Frame = npt.NDArray[np.uint8]


def bicubic(frame: Frame, width: int, height: int) -> Frame:
    """Resize a frame.

    Args:
        frame: `[H, W, 3]`.
        width: of the result.
        height: of the result.

    Returns:
        `[height, width, 3]`.
    """
    if frame.shape[1] != width:
        frame = along(frame.swapaxes(0, 1), width).swapaxes(0, 1)
    if frame.shape[0] != height:
        frame = along(frame, height)
    return frame


def along(frame: Frame, size: int) -> Frame:
    """Resize the first axis of `[N, M, 3]` to `size`."""
    first, weights, bits = kernel(len(frame), size)
    total = np.full((size, *frame.shape[1:]), 1 << bits >> 1, np.int32)
    for tap in range(weights.shape[1]):
        # beyond the end the weight is 0
        source = frame[np.minimum(first + tap, len(frame) - 1)]
        total += weights[:, tap, None, None] * source
    found: Frame = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return found


def kernel(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
    """The weights of a row of pixels that becomes another.

    Returns:
        For each new pixel the first old one that counts, `[new]`, and the weights from there on,
        `[new, taps]`, as integers; and their fractional bits.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    taps = math.ceil(support) * 2 + 1
    center = scale * (np.arange(new) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), old) - first
    count = np.clip(count, 0, taps)
    places = np.arange(taps)
    weights = cubic((places + first[:, None] - center[:, None] + 0.5) * (1 / stretch))
    weights[places >= count[:, None]] = 0.0
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < MOST_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = weights * (1 << bits)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32), bits


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cubic kernel."""
    x = np.abs(x)
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
