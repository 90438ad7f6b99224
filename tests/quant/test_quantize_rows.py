"""The fast path gives the bytes of the definition: any dtype, layout, piece and thread count."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import quant.rows
from quant import BlockFormat, Blocks, quantize, quantize_parallel, quantize_rows

HardRows = Callable[[int, np.random.Generator], Any]


def assert_same_bytes(found: Blocks, expected: Blocks) -> None:
    """Compare all three arrays bit for bit, -0 and dtype included."""
    for name in ("packed", "scales", "zero_points"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert a.tobytes() == b.tobytes(), name


def as_blocks(weight: Any, form: BlockFormat, **options: Any) -> Blocks:
    """`quantize_rows` of a whole matrix, as blocks."""
    return Blocks(*quantize_rows(weight, form, **options), form, weight.shape[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_same_bytes_for_every_format_dtype_and_width(
    form: BlockFormat, dtype: Any, hard_rows: HardRows
) -> None:
    rng = np.random.default_rng(form.block)
    for k in (1, form.block - 1, form.block, 2 * form.block, 5 * form.block + 7):
        weight = hard_rows(k, rng)
        if dtype == np.float16:
            weight = weight[np.abs(weight).max(1) < 60000]
        weight = weight.astype(dtype)
        assert_same_bytes(as_blocks(weight, form), quantize(weight, form))
        modest = weight[np.abs(weight.astype(np.float32)).max(1) < 60000]
        half = {"scales_dtype": np.float16}
        assert_same_bytes(as_blocks(modest, form, **half), quantize(modest, form, **half))


@pytest.mark.parametrize("symmetric", [True, False])
def test_same_bytes_on_a_million_weights_near_ties(symmetric: bool) -> None:
    rng = np.random.default_rng(8)
    scale = rng.uniform(1e-3, 1e-1, (4096, 1))
    steps = rng.integers(-16, 15, (4096, 256)) / 2 + rng.integers(-2, 3, (4096, 256)) * 2.0**-22
    steps[:, 0] = -8
    weight = (scale * steps).astype(np.float32)
    form = BlockFormat(4, 256, symmetric)
    assert_same_bytes(as_blocks(weight, form), quantize(weight, form))


@pytest.mark.parametrize("piece", [1, 3000, 1 << 14, 1 << 30])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_bytes_for_every_piece_and_thread_count(
    piece: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.rows, "PIECE_BYTES", piece)
    weight = np.random.default_rng(9).standard_normal((131, 203)).astype(np.float32)
    form = BlockFormat(4, 32, symmetric=False)
    assert_same_bytes(quantize_parallel(weight, form, threads=threads), quantize(weight, form))


def test_pieces_of_rows_on_a_pool_fill_the_arrays_of_the_whole() -> None:
    weight = np.random.default_rng(10).standard_normal((97, 100)).astype(ml_dtypes.bfloat16)
    form = BlockFormat(4, 16, symmetric=False)
    packed = np.zeros(form.packed_shape(97, 100), np.uint8)
    scales = np.zeros(form.scales_shape(97, 100), np.float32)
    zeros = np.zeros(form.zero_points_shape(97, 100) or (), np.uint8)

    def run(start: int) -> None:
        rows = slice(start, start + 7)
        out = packed[rows], scales[rows], zeros[rows]
        assert quantize_rows(weight[rows], form, out=out) is out

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(0, 97, 7)))
    assert_same_bytes(Blocks(packed, scales, zeros, form, 100), quantize(weight, form))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("k", [64, 50])
def test_any_layout_of_the_rows(tmp_path: Path, dtype: Any, k: int) -> None:
    form = BlockFormat(4, 32)
    weight = np.random.default_rng(11).standard_normal((20, k)).astype(dtype)
    expected = quantize(weight, form)
    (tmp_path / "w").write_bytes(b"odd" + weight.tobytes())
    raw = np.memmap(tmp_path / "w", np.uint8, "r")[3:]
    mapped = raw.view(dtype).reshape(20, k)
    assert not mapped.flags.aligned and not mapped.flags.writeable
    assert_same_bytes(as_blocks(mapped, form), expected)
    assert_same_bytes(as_blocks(np.asfortranarray(weight), form), expected)
    wide = np.zeros((40, 2 * k), dtype)
    wide[::2, :k] = weight
    assert_same_bytes(as_blocks(wide[::2, :k], form), expected)
    reverse = np.ascontiguousarray(weight[::-1, ::-1])[::-1, ::-1]
    assert_same_bytes(as_blocks(reverse, form), expected)


def test_rows_are_not_written_to_and_results_are_not_shared() -> None:
    form = BlockFormat(4, 32, symmetric=False)
    weight = np.random.default_rng(12).standard_normal((20, 64)).astype(np.float32)
    before = weight.copy()
    first = as_blocks(weight, form)
    kept = Blocks(first.packed.copy(), first.scales.copy(), first.zero_points, form, 64)
    as_blocks(weight * 2 + 1, form)
    assert np.array_equal(weight, before)
    assert_same_bytes(first, kept)


def test_scratch_serves_other_shapes_formats_and_dtypes(
    formats: list[BlockFormat],
) -> None:
    rng = np.random.default_rng(13)
    for _ in range(60):
        form = formats[rng.integers(len(formats))]
        shape = int(rng.integers(1, 60)), int(rng.integers(1, 600))
        dtype = (np.float32, np.float16, ml_dtypes.bfloat16)[rng.integers(3)]
        weight = rng.standard_normal(shape).astype(dtype)
        assert_same_bytes(as_blocks(weight, form), quantize(weight, form))


def test_no_rows() -> None:
    form = BlockFormat(4, 16, symmetric=False)
    empty = np.ones((0, 40), np.float32)
    assert_same_bytes(quantize_parallel(empty, form), quantize(empty, form))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2, 3, 30, 39])
def test_messages_name_the_row(
    dtype: Any, symmetric: bool, bad: float, column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.rows, "PIECE_BYTES", 1 << 12)  # rows 123 and 290 in later pieces
    weight = np.ones((300, 40), dtype)
    weight[123, column] = bad
    weight[290, 0] = bad
    form = BlockFormat(4, 16, symmetric)
    expected = f"weight row 123, block {column // 16}: holds NaN or infinity"
    with pytest.raises(ValueError, match=expected):
        quantize_parallel(weight, form, threads=2)
    with pytest.raises(ValueError, match=expected):
        quantize_rows(weight[100:], form, first_row=100)


def test_messages_on_dtypes_and_out() -> None:
    form = BlockFormat(4, 16, symmetric=False)
    weight = np.ones((3, 40), np.float32)
    with pytest.raises(TypeError, match="weight is float64"):
        quantize_rows(weight.astype(np.float64), form)
    with pytest.raises(TypeError, match="scales_dtype is int8"):
        quantize_rows(weight, form, scales_dtype=np.int8)
    with pytest.raises(ValueError, match="too large for a float16 scale"):
        quantize_rows(weight * np.float32(1e30), form, scales_dtype=np.float16)
    packed, scales, zeros = quantize_rows(weight, form)
    assert zeros is not None
    for out, message in (
        ((packed[:2], scales, zeros), r"out packed is uint8 \(2, 3, 8\), must be"),
        ((packed, scales.astype(np.float16), zeros), "out scales is float16"),
        ((packed, np.asfortranarray(scales), zeros), "must be C-contiguous float32"),
        ((packed, scales, None), "out zero_points is None"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_rows(weight, form, out=out)
    with pytest.raises(ValueError, match=r"out zero_points is uint8 .* must be .* None"):
        quantize_rows(weight, BlockFormat(4, 16), out=(packed, scales, zeros))
