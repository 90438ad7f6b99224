"""The block format: which bytes hold a weight matrix, and what they mean.

Shapes follow the schema of ONNX Runtime's `com.microsoft.MatMulNBits` for a weight `[N, K]`,
N output features by K input features, the layout of `torch.nn.Linear.weight`:

    packed       uint8  [N, ceil(K/block), block*bits/8]     low-order bits first
    scales       float  [N, ceil(K/block)]
    zero_points  uint8  [N, ceil(ceil(K/block)*bits/8)]      packed like the codes; or absent

Every weight is `(code - zero_point) * scale`. Without zero points, the zero point is
`2**(bits-1)`. A last block that K does not fill is padded with codes equal to its zero point,
so the padded columns dequantize to exactly 0.

`com.microsoft.GatherBlockQuantized` reads the same bytes (`Blocks.gather_data`), so an
embedding and an output head can share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BlockFormat", "Blocks", "dequantize", "pack", "unpack"]

BITS = (2, 4, 8)
SCALE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix is cut into blocks.

    Attributes:
        bits: bits of a code, 2, 4 or 8.
        block: consecutive weights of a row that share a scale, a power of two in 16..256.
        symmetric: True for the implied zero point `2**(bits-1)`, False for one a block.

    Raises:
        ValueError: for any other number.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        """Refuse what `MatMulNBits` does not take."""
        if self.bits not in BITS:
            raise ValueError(f"BlockFormat: bits is {self.bits}, must be 2, 4 or 8.")
        if self.block not in (16, 32, 64, 128, 256):
            raise ValueError(
                f"BlockFormat: block is {self.block}, must be a power of two from 16 to 256."
            )

    @property
    def max_code(self) -> int:
        """The largest code: 3, 15 or 255."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block: 2, 8 or 128."""
        return 1 << (self.bits - 1)

    @property
    def block_bytes(self) -> int:
        """Bytes of the codes of one block."""
        return self.block * self.bits // 8

    def blocks(self, k: int) -> int:
        """Blocks of a row of k weights, the last one perhaps padded."""
        return -(-k // self.block)

    def packed_shape(self, n: int, k: int) -> tuple[int, int, int]:
        """Shape of the packed codes (uint8) of an [n, k] weight."""
        return n, self.blocks(k), self.block_bytes

    def scales_shape(self, n: int, k: int) -> tuple[int, int]:
        """Shape of the scales of an [n, k] weight."""
        return n, self.blocks(k)

    def zero_points_shape(self, n: int, k: int) -> tuple[int, int] | None:
        """Shape of the packed zero points (uint8) of an [n, k] weight; None when symmetric."""
        return None if self.symmetric else (n, -(-self.blocks(k) * self.bits // 8))

    def nbytes(self, n: int, k: int, scales_dtype: npt.DTypeLike = np.float32) -> int:
        """Bytes of an [n, k] weight: codes, scales and zero points."""
        blocks = self.blocks(k)
        zero_points = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return n * (blocks * (self.block_bytes + np.dtype(scales_dtype).itemsize) + zero_points)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantized matrix [N, K]; the module docstring gives shapes and meaning.

    Attributes:
        packed: uint8, `format.packed_shape(N, k)`.
        scales: float32 or float16, `format.scales_shape(N, k)`.
        zero_points: uint8, `format.zero_points_shape(N, k)`; None when symmetric.
        format: the block format.
        k: K, the columns of the matrix without padding.

    Raises:
        ValueError: when a shape or dtype is not the one the format gives.
    """

    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[Any]
    zero_points: npt.NDArray[np.uint8] | None
    format: BlockFormat
    k: int

    def __post_init__(self) -> None:
        """Check every shape and dtype against the format."""
        n = self.packed.shape[0]
        found = None if self.zero_points is None else self.zero_points.shape
        for name, shape, wanted in (
            ("packed", self.packed.shape, self.format.packed_shape(n, self.k)),
            ("scales", self.scales.shape, self.format.scales_shape(n, self.k)),
            ("zero_points", found, self.format.zero_points_shape(n, self.k)),
        ):
            if shape != wanted:
                raise ValueError(
                    f"Blocks: {name} has shape {shape}, {self.format} and k={self.k} need {wanted}."
                )
        if self.packed.dtype != np.uint8 or self.scales.dtype not in SCALE_DTYPES:
            raise ValueError(
                f"Blocks: packed is {self.packed.dtype} and scales {self.scales.dtype}, "
                "must be uint8 and float32 or float16."
            )
        if self.zero_points is not None and self.zero_points.dtype != np.uint8:
            raise ValueError(f"Blocks: zero_points are {self.zero_points.dtype}, must be uint8.")

    @property
    def n(self) -> int:
        """N, the rows of the matrix."""
        return int(self.packed.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        zero_points = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.packed.nbytes + self.scales.nbytes + zero_points

    @property
    def gather_data(self) -> npt.NDArray[np.uint8]:
        """The codes as `data` of GatherBlockQuantized: a view [N, ceil(K/block)*block*bits/8].

        The op takes its row length from this shape, so it returns rows of K weights where K is
        a multiple of the block, and rows with the padded zeros otherwise.
        """
        return self.packed.reshape(self.n, -1)

    def rows(self, start: int, stop: int) -> Blocks:
        """The blocks of rows start..stop, as views."""
        zero_points = None if self.zero_points is None else self.zero_points[start:stop]
        return Blocks(
            self.packed[start:stop], self.scales[start:stop], zero_points, self.format, self.k
        )


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack codes along the last axis, low-order bits first.

    4 bits: `byte = c[0] | c[1] << 4`; 2 bits: `byte = c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6`.
    Where the last byte is not full, its high bits are 0. `unpack` is the inverse.

    Args:
        codes: uint8 [..., L] with values below `2**bits`.
        bits: 2, 4 or 8; 8 returns a copy.

    Returns:
        uint8 [..., ceil(L*bits/8)].

    Raises:
        ValueError: for another dtype, another number of bits or a code that needs more bits.
    """
    if codes.dtype != np.uint8 or bits not in BITS:
        raise ValueError(f"pack: {bits} bits of {codes.dtype}, must be 2, 4 or 8 bits of uint8.")
    if bits == 8:
        return codes.copy()
    if codes.size and codes.max() >> bits:
        raise ValueError(f"pack: code {codes.max()} does not fit in {bits} bits.")
    length, each = codes.shape[-1], 8 // bits
    packed = np.zeros((*codes.shape[:-1], -(-length // each)), np.uint8)
    for lane in range(each):
        part = codes[..., lane::each]
        packed[..., : part.shape[-1]] |= part << (bits * lane)
    return packed


def unpack(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Unpack `count` codes along the last axis: the inverse of `pack`.

    Args:
        packed: uint8 [..., P].
        bits: 2, 4 or 8.
        count: codes a row, at most `P*8/bits`.

    Returns:
        uint8 [..., count].

    Raises:
        ValueError: for another dtype, another number of bits or a count beyond the bytes.
    """
    if packed.dtype != np.uint8 or bits not in BITS:
        raise ValueError(f"unpack: {bits} bits of {packed.dtype}, must be 2, 4 or 8 bits of uint8.")
    each = 8 // bits
    available = packed.shape[-1] * each
    if count > available:
        raise ValueError(f"unpack: {count} codes wanted, the bytes hold {available}.")
    if bits == 8:
        return packed[..., :count].copy()
    codes = np.empty((*packed.shape[:-1], available), np.uint8)
    for lane in range(each):
        np.right_shift(packed, bits * lane, out=codes[..., lane::each])
    codes &= (1 << bits) - 1
    return codes[..., :count]


def dequantize(blocks: Blocks) -> npt.NDArray[np.float32]:
    """The matrix that blocks stand for: `(code - zero_point) * scale`, rounded once to float32.

    Returns:
        float32 [N, K].
    """
    form, n, count = blocks.format, blocks.n, blocks.format.blocks(blocks.k)
    codes = unpack(blocks.packed, form.bits, form.block)
    if blocks.zero_points is None:
        offsets = codes.astype(np.float32) - np.float32(form.middle)
    else:
        zero_points = unpack(blocks.zero_points, form.bits, count)
        offsets = codes.astype(np.float32) - zero_points[..., None].astype(np.float32)
    offsets *= blocks.scales[..., None].astype(np.float32)
    return offsets.reshape(n, count * form.block)[:, : blocks.k]
