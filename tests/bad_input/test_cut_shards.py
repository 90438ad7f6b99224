"""A shard that is cut while a package is built: one line, where a mapping would end the process."""

from __future__ import annotations

import mmap
import os
import re

import numpy as np
import onnx_ir as ir
import pytest

import quant
import surgery
from surgery.__main__ import main
from surgery.package import external_data
from surgery.package.external_data import write_graphs
from surgery.rewrite.weights import (
    Cast,
    Inline,
    Interleaved,
    Prepared,
    Quantized,
    Reshaped,
    RowScaled,
    RowTensor,
    Shifted,
    Stored,
    Swapped,
    Transposed,
    Unreadable,
    numbers,
)

BF16, F32, U8 = ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.UINT8
FORMAT = quant.BlockFormat(4, 32, True)


@pytest.fixture(autouse=True)
def unmapped(monkeypatch):
    """Python cannot map a file: in a test, SIGBUS would end the tests too."""

    def refuse(*args, **kwargs):
        pytest.fail("a file was mapped")

    monkeypatch.setattr(mmap, "mmap", refuse)


def kinds(file):
    """A source of each kind, with the weight that it reads at the end of a file."""
    matrix = Stored(file, 64, BF16, (70, 64))
    stack = Stored(file, 64, BF16, (2, 34, 64))
    wide = Cast(matrix, F32)
    parts = (Stored(file, 0, U8, (70, 2, 16)), Stored(file, 8000, F32, (70, 2)))
    return {
        "stored": matrix,
        "cast": wide,
        "transposed": Transposed(matrix),
        "transposed_cast": Cast(Transposed(matrix), F32),
        "transposed_shifted": Transposed(Shifted(wide, 1.0)),
        "swapped": Swapped(stack),
        "interleaved": Interleaved(stack),
        "reshaped": Reshaped(matrix, (70, 8, 8)),
        "shifted": Shifted(wide, 1.0),
        "scaled": RowScaled(wide, Inline(ir.tensor(np.ones(70, np.float32)))),
        "quantized": Quantized(wide, FORMAT),
        "quantized_transposed": Quantized(Cast(Transposed(matrix), F32), FORMAT),
        "prepared": Prepared(parts, FORMAT),
    }


@pytest.mark.parametrize("kind", kinds(None))
def test_every_kind_of_source(kind, tmp_path, monkeypatch):
    """Whole it is written; cut after the sizes were checked, it is an error that names both."""
    file = tmp_path / "shard.bin"
    file.write_bytes(bytes(10_000))
    tensor = RowTensor(kinds(file)[kind], name="layer.w.packed")
    write_graphs({"whole.onnx": model_of(tensor)}, tmp_path, threads=2)
    cut_before_writing(monkeypatch, file, 7000)
    with pytest.raises(Unreadable, match=r"^layer.w: .*shard.bin: ends at byte 7,000"):
        write_graphs({"cut.onnx": model_of(tensor)}, tmp_path, threads=2)


@pytest.mark.parametrize("dtype", [F32, ir.DataType.INT4])
def test_small_numbers(dtype, tmp_path):
    """Numbers that matching reads; those of four bits are unpacked."""
    file = tmp_path / "small.bin"
    file.write_bytes(bytes([0x21, 0x43, 0x65, 0x07] * 4))
    length = 16 * 8 // dtype.bitwidth
    tensor = ir.ExternalTensor(
        "small.bin", 0, 16, dtype, shape=ir.Shape([length]), name="c", base_dir=tmp_path
    )
    assert numbers(tensor).shape == (length,)
    if dtype is not F32:
        assert numbers(tensor)[:4].astype(int).tolist() == [1, 2, 3, 4]
    os.truncate(file, 10)
    with pytest.raises(Unreadable, match=r"^c: .*small.bin: ends at byte 10, .* at 16"):
        numbers(tensor)


@pytest.mark.parametrize(
    "words",
    [("-t", "fp32"), ("-t", "int4"), ("-t", "fp32", "-p", "fp32"), ("-e", "cuda", "-t", "fp16")],
    ids=" ".join,
)
def test_a_build(words, refused, raw, moved, tmp_path, monkeypatch):
    shard = moved / "model.safetensors"
    cut_before_writing(monkeypatch, shard, shard.stat().st_size // 2)
    line = refused(main, "-i", raw, "-o", tmp_path / "package", *words)
    assert "model.safetensors: ends at byte" in line and re.match(r"error: model\.[\w.]+: ", line)


def test_a_graph_of_another_exporter(raw, tmp_path):
    """Nothing is mapped from the load to the last byte written."""
    graph = surgery.load(raw / "decoder.onnx").run(*surgery.passes.TIDY)
    assert graph.save(tmp_path / "saved").is_file()


def cut_before_writing(monkeypatch, file, size):
    """Cut a file behind the check of its size, before its numbers are read."""
    write = external_data.write_data

    def cut(*args):
        os.truncate(file, size)
        write(*args)

    monkeypatch.setattr(external_data, "write_data", cut)


def model_of(tensor):
    """A graph with one initializer."""
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape),
        const_value=tensor,
    )
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)
