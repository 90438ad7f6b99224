"""The block format: shapes, packing, what the bytes mean, and the messages."""

from __future__ import annotations

import re

import numpy as np
import pytest

from quant import BlockFormat, Blocks, dequantize, pack, quantize, unpack


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 16, 33])
def test_pack_and_unpack_are_exact_inverses(bits: int, length: int) -> None:
    rng = np.random.default_rng(length)
    codes = rng.integers(0, 2**bits, (3, 5, length), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 5, -(-length * bits // 8))
    assert np.array_equal(unpack(packed, bits, length), codes)
    every = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(pack(unpack(every, bits, 256 * 8 // bits), bits), every)


def test_low_nibble_comes_first_and_the_odd_high_nibble_is_zero() -> None:
    assert pack(np.array([1, 2, 15], np.uint8), 4).tolist() == [0x21, 0x0F]
    assert unpack(np.array([0x21, 0xAF], np.uint8), 4, 3).tolist() == [1, 2, 15]


def test_the_lowest_of_four_2_bit_codes_comes_first() -> None:
    assert pack(np.array([1, 2, 0, 3, 2], np.uint8), 2).tolist() == [0b11001001, 0b10]
    assert unpack(np.array([0b11001001, 0b11110110], np.uint8), 2, 6).tolist() == [1, 2, 0, 3, 2, 1]


def test_shapes_follow_the_operator_schema() -> None:
    four = BlockFormat(4, 32, symmetric=False)
    assert four.packed_shape(6, 100) == (6, 4, 16)
    assert four.scales_shape(6, 100) == (6, 4)
    assert four.zero_points_shape(6, 100) == (6, 2)
    assert four.zero_points_shape(6, 65) == (6, 2)  # three blocks: one and a half bytes
    assert four.nbytes(6, 100) == 6 * (4 * 16 + 4 * 4 + 2)
    eight = BlockFormat(8, 128, symmetric=True)
    assert eight.packed_shape(6, 100) == (6, 1, 128)
    assert eight.zero_points_shape(6, 100) is None
    assert eight.nbytes(6, 100, np.float16) == 6 * (128 + 2)
    assert BlockFormat(8, 16, symmetric=False).zero_points_shape(6, 100) == (6, 7)


def test_dequantize_by_hand() -> None:
    codes = np.full((1, 16), 8, np.uint8)
    codes[0, :3] = 0, 9, 15
    blocks = Blocks(
        pack(codes, 4)[:, None], np.array([[0.5]], np.float32), None, BlockFormat(4, 16), 4
    )
    assert dequantize(blocks).tolist() == [[-4.0, 0.5, 3.5, 0.0]]
    asymmetric = BlockFormat(4, 16, symmetric=False)
    blocks = Blocks(blocks.packed, blocks.scales, np.array([[0x03]], np.uint8), asymmetric, 4)
    assert dequantize(blocks).tolist() == [[-1.5, 3.0, 6.0, 2.5]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_padding_dequantizes_to_zero(bits: int, symmetric: bool) -> None:
    form = BlockFormat(bits, 32, symmetric)
    weight = np.random.default_rng(0).uniform(1, 2, (5, 41)).astype(np.float32)
    blocks = quantize(weight, form)
    padded = Blocks(blocks.packed, blocks.scales, blocks.zero_points, form, 64)
    assert np.array_equal(dequantize(padded)[:, :41], dequantize(blocks))
    assert not dequantize(padded)[:, 41:].any()


def test_rows_and_gather_data_are_views() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    blocks = quantize(weight, BlockFormat(4, 16, symmetric=False))
    part = blocks.rows(2, 5)
    assert (part.n, part.k) == (3, 64)
    assert np.array_equal(dequantize(part), dequantize(blocks)[2:5])
    assert np.shares_memory(part.packed, blocks.packed)
    assert blocks.gather_data.shape == (6, 32)
    assert np.shares_memory(blocks.gather_data, blocks.packed)
    assert blocks.nbytes == blocks.format.nbytes(6, 64)


def test_messages_say_what_was_found_and_what_is_needed() -> None:
    with pytest.raises(ValueError, match=r"bits is 3, must be 2, 4 or 8"):
        BlockFormat(3)
    for block in (0, 8, 48, 512):
        with pytest.raises(ValueError, match=rf"block is {block}, must be a power of two"):
            BlockFormat(4, block)
    form, codes = BlockFormat(4, 16), np.zeros((2, 3, 8), np.uint8)
    scales = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=re.escape("packed has shape (2, 3, 8), ")):
        Blocks(codes, scales, None, form, 50)
    with pytest.raises(ValueError, match=re.escape("scales has shape (2, 2), ")):
        Blocks(codes, scales[:, :2], None, form, 48)
    with pytest.raises(ValueError, match=re.escape("zero_points has shape None, ")):
        Blocks(codes, scales, None, BlockFormat(4, 16, symmetric=False), 48)
    with pytest.raises(ValueError, match="scales float64, must be uint8 and float32"):
        Blocks(codes, scales.astype(np.float64), None, form, 48)
    with pytest.raises(ValueError, match="zero_points are int8, must be uint8"):
        Blocks(codes, scales, np.zeros((2, 2), np.int8), BlockFormat(4, 16, False), 48)
    with pytest.raises(ValueError, match="code 16 does not fit in 4 bits"):
        pack(np.array([16], np.uint8), 4)
    with pytest.raises(ValueError, match="code 4 does not fit in 2 bits"):
        pack(np.array([4], np.uint8), 2)
    with pytest.raises(ValueError, match="3 bits of uint8"):
        pack(np.array([1], np.uint8), 3)
    with pytest.raises(ValueError, match="4 bits of int8"):
        unpack(np.array([1], np.int8), 4, 1)
    with pytest.raises(ValueError, match="3 codes wanted, the bytes hold 2"):
        unpack(np.array([1], np.uint8), 4, 3)
