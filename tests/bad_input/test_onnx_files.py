"""ONNX files that no pass may see: each is refused in one line, quickly, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from refusal import Refused

from surgery.__main__ import main

Change = Callable[[onnx.ModelProto, Path], None]


def model() -> onnx.ModelProto:
    """y = Concat(x, w), z = MatMul(y, v), the weight v in a data file."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 300])
    w = numpy_helper.from_array(np.ones((1, 8), np.float32), "w")
    v = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[8, 300])
    v.data_location = TensorProto.EXTERNAL
    external(v, location="data.bin", offset=64, length=9600)
    nodes = [
        helper.make_node("Concat", ["x", "w"], ["y"], "join", axis=0),
        helper.make_node("MatMul", ["y", "v"], ["z"], "product"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [z], [w, v])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(tensor: TensorProto, **about: object) -> None:
    """Say where a tensor's data lies."""
    del tensor.external_data[:]
    for key, value in about.items():
        tensor.external_data.add(key=key, value=str(value))


def weight(proto: onnx.ModelProto) -> TensorProto:
    return proto.graph.initializer[1]


def located(location: str) -> Change:
    return lambda proto, folder: external(weight(proto), location=location)


def linked(proto: onnx.ModelProto, folder: Path) -> None:
    """The data file is a link to a file elsewhere."""
    (folder / "data.bin").rename(folder.parent / "secret.bin")
    os.symlink(folder.parent / "secret.bin", folder / "data.bin")


def doubling(proto: onnx.ModelProto, folder: Path) -> None:
    """Forty functions that each call the next one twice: 2**40 nodes."""
    for i in range(40):
        op = f"f{i + 1}" if i < 39 else "Neg"
        domain = "local" if i < 39 else ""
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))]
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        proto.functions.append(helper.make_function("local", f"f{i}", ["a"], ["c"], nodes, imports))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(helper.make_node("f0", ["z"], ["extra"], domain="local"))


def recursive(proto: onnx.ModelProto, folder: Path) -> None:
    """A function that calls itself."""
    nodes = [helper.make_node("f", ["a"], ["b"], domain="local")]
    imports = [helper.make_opsetid("local", 1)]
    proto.functions.append(helper.make_function("local", "f", ["a"], ["b"], nodes, imports))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(helper.make_node("f", ["z"], ["extra"], domain="local"))


def cyclic(proto: onnx.ModelProto, folder: Path) -> None:
    proto.graph.node[0].input[0] = "z"


def sparse(proto: onnx.ModelProto, folder: Path) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 30]))


def short_raw(proto: onnx.ModelProto, folder: Path) -> None:
    proto.graph.initializer[0].dims[0] = 1 << 40


def no_attribute(proto: onnx.ModelProto, folder: Path) -> None:
    del proto.graph.node[0].attribute[:]


def truncated(proto: onnx.ModelProto, folder: Path) -> None:
    os.truncate(folder / "data.bin", 100)


CASES: dict[str, tuple[Change, str]] = {
    "climbing": (located("../secret.bin"), "outside the folder"),
    "absolute": (located("/etc/hostname"), "outside the folder"),
    "windows": (located("..\\secret.bin"), "outside the folder"),
    "no location": (located(""), "outside the folder"),
    "link out": (linked, "is a link out of the folder"),
    "missing data": (located("other.bin"), "is missing"),
    "short data": (truncated, "ends at byte 9,664 of data.bin, which has 100"),
    "wrong length": (lambda p, f: external(weight(p), location="data.bin", length=5), "length 5"),
    "negative offset": (lambda p, f: external(weight(p), location="data.bin", offset=-8), "ends"),
    "offset in words": (
        lambda p, f: external(weight(p), location="data.bin", offset="x"),
        "no num",
    ),
    "huge tensor": (short_raw, "its type and shape make it"),
    "negative shape": (lambda p, f: weight(p).dims.__setitem__(0, -1), "shape [-1, 300]"),
    "unknown dtype": (lambda p, f: setattr(weight(p), "data_type", 99), "unknown data type 99"),
    "doubling functions": (doubling, "nodes, local functions inlined"),
    "recursive function": (recursive, "calls itself"),
    "cycle": (cyclic, "no ONNX graph"),
    "from nowhere": (lambda p, f: p.graph.node[1].input.__setitem__(0, "n"), "reads n, which"),
    "made twice": (lambda p, f: p.graph.node[1].output.__setitem__(0, "y"), "y is made twice"),
    "lost output": (lambda p, f: setattr(p.graph.output[0], "name", "q"), "output q"),
    "sparse": (sparse, "sparse initializer"),
    "no attribute": (no_attribute, "Concat without its attribute axis"),
    "no input": (lambda p, f: p.graph.node[1].ClearField("input"), "MatMul without its input A"),
    "one input": (lambda p, f: p.graph.node[1].input.pop(), "MatMul without its input B"),
    "input without a name": (
        lambda p, f: p.graph.node[1].input.__setitem__(0, ""),
        "MatMul without its input A",
    ),
    "joins nothing": (lambda p, f: p.graph.node[0].ClearField("input"), "Concat without its input"),
    "many inputs": (lambda p, f: p.graph.node[1].input.append("x"), "takes 2"),
    "many outputs": (lambda p, f: p.graph.node[1].output.append("o"), "makes 1"),
    "no output": (
        lambda p, f: p.graph.node.append(helper.make_node("Neg", ["z"], [])),
        "Neg without an output",
    ),
    "unknown op": (lambda p, f: setattr(p.graph.node[1], "op_type", "MatMull"), "no op MatMull"),
    "power": (lambda p, f: dim(p, "9**9**9"), "is named '9**9**9'"),
    "long dimension": (lambda p, f: dim(p, "n" * 10_000), "is named"),
    "no opset": (lambda p, f: p.ClearField("opset_import"), "states no opset"),
    "opset 0": (lambda p, f: setattr(p.opset_import[0], "version", 0), "opset 0"),
    "opset 6": (lambda p, f: setattr(p.opset_import[0], "version", 6), "opset 6"),
    "opset of the future": (lambda p, f: setattr(p.opset_import[0], "version", 999), "opset 999"),
    "empty": (lambda p, f: p.Clear(), "neither nodes nor outputs"),
}


def dim(proto: onnx.ModelProto, name: str) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data file."""
    place = tmp_path / "graph"
    place.mkdir()
    (place / "data.bin").write_bytes(bytes(64 + 9600))
    return place


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, folder: Path, tmp_path: Path, refused: Refused) -> None:
    change, words = CASES[name]
    proto = model()
    change(proto, folder)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    line = refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "out")
    assert words in line, line


@pytest.mark.parametrize("data", [b"\xff" * 100, b"PK\x03\x04", b"{}", bytes(1000)])
def test_no_protobuf(data: bytes, folder: Path, tmp_path: Path, refused: Refused) -> None:
    (folder / "m.onnx").write_bytes(data)
    assert "no ONNX graph" in refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "o")


def test_a_fifo(folder: Path, tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(folder / "m.onnx")
    line = refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "o")
    assert "no such file" in line or "regular file" in line


def test_sound(folder: Path, tmp_path: Path) -> None:
    """The file that the cases damage, and one whose links stay in the cache of the hub."""
    (folder / "m.onnx").write_bytes(model().SerializeToString())
    assert main(["apply", "-i", str(folder / "m.onnx"), "-o", str(tmp_path / "out")]) == 0
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    folder.rename(blobs)
    for name in ("m.onnx", "data.bin"):
        os.symlink(blobs / name, snapshot / name)
    assert main(["apply", "-i", str(snapshot / "m.onnx"), "-o", str(tmp_path / "again")]) == 0


def test_nodes_in_another_order(folder: Path, tmp_path: Path) -> None:
    proto = model()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    assert main(["apply", "-i", str(folder / "m.onnx"), "-o", str(tmp_path / "out")]) == 0
