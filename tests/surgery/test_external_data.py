"""Weights beside their graphs: places, bytes, sharing."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import quant
from surgery.base.errors import PackageError
from surgery.package import external_data
from surgery.package.external_data import LARGE, PAGE_ALIGNMENT, SMALL_ALIGNMENT, write_graphs
from surgery.rewrite import weights
from surgery.rewrite.weights import FEW, Cast, Quantized, Reshaped, RowTensor, Stored, Transposed

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
FORMAT = quant.BlockFormat(4, 32, False)


@pytest.fixture
def stored(tmp_path, rng):
    """A maker of weights in a file."""

    def make(shape, dtype=BF16):
        array = (0.1 * rng.standard_normal(shape)).astype(dtype.numpy())
        file = tmp_path / "shard.bin"
        offset = file.stat().st_size if file.exists() else 0
        with file.open("ab") as f:
            f.write(array.tobytes())
        return Stored(file, offset, dtype, shape), array

    return make


def model_of(**tensors):
    """A graph that reads each tensor."""
    values = []
    for name, tensor in tensors.items():
        kind = ir.TensorType(tensor.dtype)
        values.append(
            ir.Value(name=name, type=kind, shape=ir.Shape(tensor.shape), const_value=tensor)
        )
    nodes = [ir.node("Identity", [value]) for value in values]
    for value, node in zip(values, nodes):
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{value.name}.out", value.type, value.shape
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph(
        [], outputs, nodes=nodes, initializers=values, opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def read(folder, name):
    """Initializers as onnx reads them back."""
    model = onnx.load(folder / name)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def places(folder, name):
    """Where each external initializer lies: file, offset, length."""
    model = onnx.load(folder / name, load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if entries:
            offset, length = int(entries["offset"]), int(entries["length"])
            found[tensor.name] = (entries["location"], offset, length)
    return found


def everything(stored):
    """One of each kind of source, and what its bytes must say."""
    wide, a = stored((300, 96))
    tall, b = stored((5000, 64))
    conv, c = stored((16, 3, 2, 4, 4), F32)
    half, d = stored((40, 50), F16)
    blocks = Quantized(wide, FORMAT)
    want = quant.quantize(a.astype(np.float32), FORMAT)
    tensors = {
        "cast": RowTensor(Cast(wide, F32), name="cast"),
        "narrow": RowTensor(Cast(Cast(tall, F32), F16), name="narrow"),
        "turned": RowTensor(Cast(Transposed(tall), F32), name="turned"),
        "flat": RowTensor(Reshaped(conv, (16, 96)), name="flat"),
        "as_is": RowTensor(half, name="as_is"),
        "packed": RowTensor(blocks, 0, name="packed"),
        "scales": RowTensor(blocks, 1, name="scales"),
        "zeros": RowTensor(blocks, 2, name="zeros"),
        "gather": RowTensor(blocks, 0, name="gather", shape=(300, 48)),
        "array": ir.tensor(np.arange(1000, dtype=np.float32), name="array"),
        "small": ir.tensor(np.arange(3, dtype=np.int64), name="small"),
        "none": RowTensor(Stored(wide.file, 0, F32, (0, 7)), name="none"),
    }
    numbers = {
        "cast": a.astype(np.float32),
        "narrow": b.astype(np.float32).astype(np.float16),
        "turned": b.T.astype(np.float32),
        "flat": c.reshape(16, 96),
        "as_is": d,
        "packed": want.packed,
        "scales": want.scales,
        "zeros": want.zero_points,
        "gather": want.gather_data,
        "array": np.arange(1000, dtype=np.float32),
        "small": np.arange(3),
        "none": np.zeros((0, 7), np.float32),
    }
    return tensors, numbers


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_values(stored, tmp_path, threads):
    tensors, numbers = everything(stored)
    write_graphs({"m.onnx": model_of(**tensors)}, tmp_path, threads)
    found = read(tmp_path, "m.onnx")
    for name, array in numbers.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_bytes_do_not_depend_on_threads(stored, tmp_path):
    tensors, _ = everything(stored)
    written = []
    for threads in (1, 2, 5):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_graphs({"m.onnx": model_of(**tensors)}, folder, threads)
        written.append([(folder / n).read_bytes() for n in ("m.onnx", "m.onnx.data")])
    assert written[0] == written[1] == written[2]


def test_pieces(stored, tmp_path, monkeypatch):
    """Weights in pieces of a few rows give the bytes that one piece gives."""
    tensors, numbers = everything(stored)
    monkeypatch.setattr("surgery.package.external_data.PIECE", 1 << 12)
    write_graphs({"m.onnx": model_of(**tensors)}, tmp_path, 2)
    found = read(tmp_path, "m.onnx")
    assert all(np.array_equal(found[name], array) for name, array in numbers.items())


def test_alignment(stored, tmp_path):
    large, _ = stored((LARGE // 256, 64), F32)
    odd, _ = stored((333, 1), F32)
    even, _ = stored((334, 1), F32)
    exact, _ = stored((LARGE // 64, 16), F32)
    under, _ = stored((LARGE // 4 - 1, 1), F32)
    names = ("first", "large", "odd", "under", "exact")
    tensors = {
        name: RowTensor(source, name=name)
        for name, source in zip(names, (odd, large, even, under, exact))
    }
    write_graphs({"m.onnx": model_of(**tensors)}, tmp_path)
    found = places(tmp_path, "m.onnx")
    for name, (_, offset, length) in found.items():
        assert offset % (PAGE_ALIGNMENT if length >= LARGE else SMALL_ALIGNMENT) == 0, name
    ends = 0
    for _, offset, length in sorted(found.values()):
        assert offset >= ends, "two tensors overlap"
        ends = offset + length
    assert (tmp_path / "m.onnx.data").stat().st_size == ends
    assert found["large"][1] > 0 and found["under"][1] % PAGE_ALIGNMENT != 0


def test_small_stay_inline(stored, tmp_path):
    """Below 1 KiB a tensor stays in the graph, wherever it came from."""
    at, _ = stored((256,), F32)
    below, array = stored((255,), F32)
    tensors = {
        "at": RowTensor(at, name="at"),
        "below": RowTensor(below, name="below"),
        "cast": RowTensor(Cast(Stored(below.file, below.offset, BF16, (100,)), F32), name="cast"),
        "two": ir.tensor(np.arange(2, dtype=np.int64), name="two"),
    }
    write_graphs({"m.onnx": model_of(**tensors)}, tmp_path)
    assert list(places(tmp_path, "m.onnx")) == ["at"]
    assert np.array_equal(read(tmp_path, "m.onnx")["below"], array)


def test_equal_sources_once(stored, tmp_path):
    """Within a graph and across graphs; equal is what is made alike, not the same object."""
    source, array = stored((100, 40))
    again = Stored(source.file, source.offset, BF16, (100, 40))
    first = model_of(
        a=RowTensor(Cast(source, F32), name="a"), b=RowTensor(Cast(again, F32), name="b")
    )
    second = model_of(
        c=RowTensor(Cast(again, F32), name="c"), other=RowTensor(Cast(again, F16), name="other")
    )
    layout = write_graphs({"one.onnx": first, "two.onnx": second}, tmp_path)
    one, two = places(tmp_path, "one.onnx"), places(tmp_path, "two.onnx")
    assert one["a"] == one["b"] == two["c"] == ("one.onnx.data", 0, 16000)
    assert two["other"] == ("two.onnx.data", 0, 8000)
    assert layout.sizes == {"one.onnx.data": 16000, "two.onnx.data": 8000}
    assert np.array_equal(read(tmp_path, "two.onnx")["c"], array.astype(np.float32))


def test_blocks_share_their_job(stored, tmp_path):
    """A table that picks rows and a head that multiplies read the same packed bytes."""
    source, _ = stored((64, 96))
    head = model_of(packed=RowTensor(Quantized(source, FORMAT), 0, name="packed"))
    table = model_of(data=RowTensor(Quantized(source, FORMAT), 0, name="data", shape=(64, 48)))
    write_graphs({"head.onnx": head, "table.onnx": table}, tmp_path)
    assert places(tmp_path, "head.onnx")["packed"] == places(tmp_path, "table.onnx")["data"]


def test_checkpoint_tensors_are_shared(stored, tmp_path):
    """A weight that no pass touched is streamed and shared like the others."""
    source, array = stored((100, 40))

    def external(name):
        return ir.ExternalTensor(
            source.file.name, source.offset, array.nbytes, BF16, shape=ir.Shape((100, 40)),
            name=name, base_dir=source.file.parent,
        )  # fmt: skip

    out = tmp_path / "out"
    out.mkdir()
    model = model_of(a=external("a"), b=RowTensor(source, name="b"))
    write_graphs({"m.onnx": model}, out)
    found = places(out, "m.onnx")
    assert found["a"] == found["b"] == ("m.onnx.data", 0, array.nbytes)
    data = (out / "m.onnx.data").read_bytes()
    assert np.array_equal(np.frombuffer(data, ml_dtypes.bfloat16).reshape(100, 40), array)


def test_report(stored, tmp_path):
    """Progress never falls and ends at the whole."""
    tensors, _ = everything(stored)
    seen = []
    write_graphs({"m.onnx": model_of(**tensors)}, tmp_path, 2, lambda *state: seen.append(state))
    done = [d for d, _ in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1] > 0


def test_errors_come_through(tmp_path):
    """A shard that is too short is an error, not zeros."""
    file = tmp_path / "shard.bin"
    file.write_bytes(b"\0" * 100)
    tensor = RowTensor(Stored(file, 0, F32, (100, 100)), name="a")
    with pytest.raises(PackageError, match=r"shard.bin: ends at byte 100, .* at 40,000"):
        write_graphs({"m.onnx": model_of(a=tensor)}, Path(tmp_path), 2)


@pytest.mark.parametrize("shape", [(130, 90), (300, 7), (70, 1000)])
def test_a_transposed_matrix_in_tiles(stored, tmp_path, monkeypatch, shape):
    """It is read a few times at most, however many tiles there are, and written once."""
    monkeypatch.setattr(external_data, "SIDE", 64)
    monkeypatch.setattr(weights, "SHORT", 0)
    source, array = stored(shape)
    fill, read_bytes = Stored.fill, []

    def counted(self, file, rows, element):
        read_bytes.append(rows.nbytes)
        fill(self, file, rows, element)

    monkeypatch.setattr(Stored, "fill", counted)
    tensor = RowTensor(Cast(Transposed(source), F32), name="w")
    write_graphs({"m.onnx": model_of(w=tensor)}, tmp_path, 2)
    assert np.array_equal(read(tmp_path, "m.onnx")["w"], array.T.astype(np.float32))
    assert sum(read_bytes) <= FEW * array.nbytes
    assert np.array_equal(tensor.numpy(), array.T.astype(np.float32))


def test_four_bits_in_a_data_file(tmp_path):
    """Numbers that share bytes are copied as bytes."""
    packed = np.arange(1024, dtype=np.uint8)
    (tmp_path / "old.data").write_bytes(packed.tobytes())
    shape = ir.Shape([2, 1024])
    tensor = ir.ExternalTensor(
        "old.data", 0, 1024, ir.DataType.UINT4, shape=shape, name="w", base_dir=tmp_path
    )
    write_graphs({"m.onnx": model_of(w=tensor)}, tmp_path, 2)
    assert places(tmp_path, "m.onnx")["w"] == ("m.onnx.data", 0, 1024)
    assert (tmp_path / "m.onnx.data").read_bytes() == packed.tobytes()


def test_data_files_have_a_limit(stored, tmp_path, rng):
    """A file that has no room for the next weight is followed by another; one may be too large."""
    arrays, tensors = {}, {}
    for name, rows in (("a", 40), ("b", 40), ("large", 300), ("c", 10)):
        source, arrays[name] = stored((rows, 32), F32)
        tensors[name] = RowTensor(source, name=name)
    limit = 12_000  # two of the smaller ones, 5,120 bytes each
    layout = write_graphs({"g.onnx": model_of(**tensors)}, tmp_path, data="_data", limit=limit)
    assert {name: size <= limit for name, size in layout.sizes.items()} == {
        "g.onnx_data": True,
        "g.onnx_data_1": False,
        "g.onnx_data_2": True,
    }
    back = read(tmp_path, "g.onnx")
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())
