"""Quantized weights kept on disk: one file a weight, written whole or not at all."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

import quant
from surgery.rewrite.weights import Array, Prepared, Shape, Stored

SCALES = {np.dtype(np.float32): ir.DataType.FLOAT, np.dtype(np.float16): ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Store:
    """A folder of quantized weights.

    Attributes:
        folder: where the files lie.
    """

    folder: Path

    def file(self, name: str) -> Path:
        """The file of a weight."""
        return self.folder / f"{name}.blocks"

    def write(self, name: str, blocks: quant.Blocks) -> None:
        """Keep the codes, scales and zero points of a weight, in this order in one file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file(name).with_suffix(".partial")
        with partial.open("wb") as file:
            for array in arrays(blocks):
                file.write(np.ascontiguousarray(array).tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.file(name))

    def holds(self, name: str, nbytes: int) -> bool:
        """Whether a weight of this many bytes is there in full."""
        file = self.file(name)
        return file.is_file() and file.stat().st_size == nbytes

    def source(
        self,
        name: str,
        format: quant.BlockFormat,
        n: int,
        k: int,
        scales: ir.DataType,
        stack: int = 0,
    ) -> Prepared:
        """A weight [N, K] that was kept, as a source for the package.

        Args:
            name: of the weight.
            format: in which it was kept.
            n: rows.
            k: columns.
            scales: dtype in which its scales were kept.
            stack: matrices of a weight [E, N, K]; 0 for a single one.
        """
        parts: list[tuple[ir.DataType, Shape]] = [
            (ir.DataType.UINT8, format.packed_shape(n, k)),
            (scales, format.scales_shape(n, k)),
        ]
        zero_points = format.zero_points_shape(n, k)
        if zero_points is not None:
            parts.append((ir.DataType.UINT8, zero_points))
        stored, offset = [], 0
        for dtype, single in parts:
            shape = (stack, *single) if stack else single
            stored.append(Stored(self.file(name), offset, dtype, shape))
            offset += math.prod(shape) * int(dtype.itemsize)
        return Prepared(tuple(stored), format)


def arrays(blocks: quant.Blocks) -> list[Array]:
    """Codes, scales and, where the format has them, zero points."""
    found: list[Array] = [blocks.packed, blocks.scales]
    if blocks.zero_points is not None:
        found.append(blocks.zero_points)
    return found
