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


def function(*nodes: onnx.NodeProto, opset: int = 20) -> Change:
    """The result goes through a local function of these nodes, from `a` to `b`."""

    def change(proto: onnx.ModelProto, folder: Path) -> None:
        imports = [helper.make_opsetid("", opset)]
        proto.functions.append(helper.make_function("local", "f", ["a"], ["b"], nodes, imports))
        proto.opset_import.append(helper.make_opsetid("local", 1))
        proto.graph.node.append(helper.make_node("f", ["z"], ["extra"], "call", domain="local"))

    return change


def secret(name: str) -> TensorProto:
    """A tensor whose data lies outside the folder of the graph."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8, 300])
    tensor.data_location = TensorProto.EXTERNAL
    external(tensor, location="../secret.bin")
    return tensor


def default_of_a_function(proto: onnx.ModelProto, folder: Path) -> None:
    """The tensor is the default of an attribute that the call leaves out."""
    made = helper.make_node("Constant", [], ["b"])
    made.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="numbers")
    function(made)(proto, folder)
    default = proto.functions[0].attribute_proto.add(name="numbers")
    default.type = onnx.AttributeProto.TENSOR
    default.t.CopyFrom(secret("s"))


def attributes(**given: object) -> Change:
    """A node of an op that nobody knows, with these attributes."""

    def change(proto: onnx.ModelProto, folder: Path) -> None:
        proto.graph.node.append(helper.make_node("Op", ["z"], ["extra"], domain="x", **given))
        proto.opset_import.append(helper.make_opsetid("x", 1))

    return change


def sparse_value() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    return helper.make_sparse_tensor(secret("s"), indices, [1 << 20])


def node(op: str, *inputs: str, outputs: int = 1, **given: object) -> Change:
    """One more node, which reads values of the graph and these constants."""
    constants = {
        "one": np.array(1), "many": np.array([9, 9]), "far": np.array([99]), "no": np.array(False),
    }  # fmt: skip

    def change(proto: onnx.ModelProto, folder: Path) -> None:
        made = [f"extra{i}" for i in range(outputs)]
        proto.graph.node.append(helper.make_node(op, inputs, made, "added", **given))
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        for name in constants.keys() & set(inputs):
            proto.graph.initializer.append(numpy_helper.from_array(constants[name], name))

    return change


def branch(*outputs: str, reads: str = "z") -> onnx.GraphProto:
    """A branch that computes each of its outputs, but for `z`, from a value outside."""
    nodes = [helper.make_node("Neg", [reads], [name]) for name in outputs if name != "z"]
    return helper.make_graph(nodes, "branch", [], [onnx.ValueInfoProto(name=n) for n in outputs])


def numbers(count: int) -> Change:
    """The constant of 8 numbers has another count of them in a field of its own."""

    def change(proto: onnx.ModelProto, folder: Path) -> None:
        proto.graph.initializer[0].ClearField("raw_data")
        proto.graph.initializer[0].float_data.extend([1.0] * count)

    return change


def strings_elsewhere(proto: onnx.ModelProto, folder: Path) -> None:
    tensor = TensorProto(name="s", data_type=TensorProto.STRING, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    external(tensor, location="data.bin")
    proto.graph.initializer.append(tensor)


def twice_at_the_end(proto: onnx.ModelProto, folder: Path) -> None:
    """Of 60,000 values the last is made twice: to count each of them would take minutes."""
    names = [f"e{i}" for i in range(60_000)]
    proto.graph.node.extend(helper.make_node("Neg", ["z"], [name]) for name in names)
    proto.graph.node.append(helper.make_node("Neg", ["z"], names[-1:]))


def doubling_in_branches(proto: onnx.ModelProto, folder: Path) -> None:
    """Forty functions that each call the next one in two branches."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    for i in range(40):
        calls = [
            helper.make_node(f"f{i + 1}" if i < 39 else "Neg", ["a"], [name],
                             domain="local" if i < 39 else "")
            for name in ("t", "e")
        ]  # fmt: skip
        ends = [onnx.ValueInfoProto(name=name) for name in ("t", "e")]
        then, other = (
            helper.make_graph([call], "branch", [], [end])
            for call, end in zip(calls, ends, strict=True)
        )
        chosen = helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other)
        proto.functions.append(
            helper.make_function("local", f"f{i}", ["a", "c"], ["b"], [chosen], imports)
        )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(helper.make_node("f0", ["z", "x"], ["extra"], domain="local"))


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
    "doubling in branches": (doubling_in_branches, "nodes, local functions inlined"),
    "recursive function": (recursive, "calls itself"),
    "cycle": (cyclic, "no ONNX graph"),
    "from nowhere": (lambda p, f: p.graph.node[1].input.__setitem__(0, "n"), "reads n, which"),
    "made twice": (lambda p, f: p.graph.node[1].output.__setitem__(0, "y"), "y is made twice"),
    "lost output": (lambda p, f: setattr(p.graph.output[0], "name", "q"), "output q"),
    "default of a function": (default_of_a_function, "outside the folder"),
    "value of a sparse attribute": (attributes(v=sparse_value()), "outside the folder"),
    "tensors of an attribute": (attributes(v=[secret("s")]), "outside the folder"),
    "strings elsewhere": (strings_elsewhere, "tensor s: strings in a data file"),
    "few numbers": (numbers(3), "3 numbers in float_data, its type and shape make it 8"),
    "no numbers": (numbers(0), "0 numbers in float_data"),
    "no dtype": (lambda p, f: setattr(p.graph.initializer[0], "data_type", 0), "no data type"),
    "unknown type": (
        lambda p, f: setattr(p.graph.input[0].type.tensor_type, "elem_type", 99),
        "99 is not a valid DataType",
    ),
    "late double": (twice_at_the_end, "value e59999 is made twice"),
    "attribute of another type": (
        lambda p, f: p.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", 0.5)),
        "axis is of type FLOAT, needs to be INT",
    ),
    "attribute twice": (
        lambda p, f: p.graph.node[0].attribute.append(helper.make_attribute("axis", 1)),
        "with 2 attributes axis",
    ),
    "attribute of no function": (
        lambda p, f: setattr(p.graph.node[0].attribute[0], "ref_attr_name", "q"),
        "refers to q, which no function",
    ),
    "constant without a value": (node("Constant"), "Constant with 0 values"),
    "constant of two": (node("Constant", value_int=1, value_float=1.0), "Constant with 2 values"),
    "branches of unlike outputs": (
        node("If", "no", then_branch=branch("t"), else_branch=branch("e", "e2")),
        "If with 1 outputs, its else_branch has 2",
    ),
    "branch that returns what is outside": (
        node("If", "no", then_branch=branch("z"), else_branch=branch("e")),
        "output z of a branch is made outside it",
    ),
    "function without an attribute": (
        function(helper.make_node("Concat", ["a", "a"], ["b"])),
        "function f: node : Concat without its attribute axis",
    ),
    "function from nowhere": (function(helper.make_node("Neg", ["q"], ["b"])), "reads q, which"),
    "function without its output": (function(helper.make_node("Neg", ["a"], ["c"])), "output b"),
    "function in another order": (
        function(helper.make_node("Neg", ["c"], ["b"]), helper.make_node("Neg", ["a"], ["c"])),
        "function f: a node stands before one that it reads",
    ),
    "function of another opset": (
        function(helper.make_node("Neg", ["a"], ["b"]), opset=11),
        "function f: opset 11, that of the model is 20",
    ),
    "function of fewer inputs": (
        lambda p, f: (
            function(helper.make_node("Neg", ["a"], ["b"]))(p, f),
            p.graph.node[-1].input.append("x"),
        ),
        "call: f with 2 inputs, the function has 1",
    ),
    "axis beyond": (
        lambda p, f: setattr(p.graph.node[0].attribute[0], "i", 99),
        "join: Concat cannot run on its inputs, of shapes [batch, 8], [1, 8]",
    ),
    "axes beyond": (node("Unsqueeze", "z", "far"), "added: Unsqueeze cannot run on its inputs"),
    "axes twice": (node("Unsqueeze", "z", "many"), "added: Unsqueeze cannot run on its inputs"),
    "cast to nothing": (node("Cast", "z", to=99), "added: Cast cannot run on its inputs"),
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
    assert words in line and "m.onnx" in line, line


def test_text_that_is_not_utf8(folder: Path, tmp_path: Path, refused: Refused) -> None:
    """Wherever text stands: names of nodes, values, ops and dimensions."""
    proto = model()
    dim(proto, "AAAA")
    proto.graph.node[0].name = proto.graph.doc_string = "BBBB"
    proto.graph.node[1].op_type = "CCCC"
    whole = proto.SerializeToString()
    for text in (b"AAAA", b"BBBB", b"CCCC"):
        (folder / "m.onnx").write_bytes(whole.replace(text, b"\xff\xfe\xfd\xfc"))
        line = refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "out")
        assert "m.onnx" in line and "is not UTF-8" in line


@pytest.mark.parametrize("data", [b"\xff" * 100, b"PK\x03\x04", b"{}", bytes(1000)])
def test_no_protobuf(data: bytes, folder: Path, tmp_path: Path, refused: Refused) -> None:
    (folder / "m.onnx").write_bytes(data)
    assert "no ONNX graph" in refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "o")


def test_a_fifo(folder: Path, tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(folder / "m.onnx")
    line = refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "o")
    assert "no such file" in line or "regular file" in line


@pytest.mark.parametrize("preset", ["balanced", "best"])
def test_a_preset_that_calibrates(
    preset: str, folder: Path, tmp_path: Path, refused: Refused
) -> None:
    onnx.save(model(), folder / "m.onnx")
    words = ("-t", "int4", "--preset", preset)
    line = refused(main, "apply", "-i", folder / "m.onnx", "-o", tmp_path / "out", *words)
    assert f"--preset {preset}: a graph of another exporter is calibrated on inputs" in line
    assert not (tmp_path / "out").exists()


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


HARMLESS: dict[str, Change] = {
    "a number that is long to write": lambda p, f: dim(p, "1e999999999"),
    "a sum with such a number": lambda p, f: dim(p, "1E99999999 + b"),
    "a dimension that is no sum": lambda p, f: dim(p, "a if b else c"),
    "a module path that is no list": lambda p, f: recorded(p, "[[["),
    "a module path that is a call": lambda p, f: recorded(p, "exit(1)"),
    "a length that is not there": lambda p, f: (
        node("Shape", "z")(p, f),
        p.graph.node.append(helper.make_node("Gather", ["extra0", "far"], ["e"])),
        p.graph.initializer.append(numpy_helper.from_array(np.array([99]), "far")),
    ),
}
"""Oddities that no pass stumbles over."""


def recorded(proto: onnx.ModelProto, text: str) -> None:
    """What an exporter recorded of the modules of a node."""
    entry = onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=text)
    proto.graph.node[0].metadata_props.append(entry)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(name: str, folder: Path, tmp_path: Path) -> None:
    proto = model()
    HARMLESS[name](proto, folder)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    assert main(["apply", "-i", str(folder / "m.onnx"), "-o", str(tmp_path / "out")]) == 0


def test_weights_of_64_bits_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    proto = model()
    weight(proto).data_type = TensorProto.DOUBLE
    weight(proto).dims[1] = 150
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    words = ["apply", "-i", str(folder / "m.onnx"), "-o", str(tmp_path / "out"), "-t", "int4"]
    assert main(words) == 0
    made = onnx.load(tmp_path / "out" / "m.onnx", load_external_data=False)
    assert [n.op_type for n in made.graph.node] == ["Concat", "MatMul"]
