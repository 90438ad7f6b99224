"""`python -m surgery prepack`: the same answers, and weights that a process maps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from surgery.__main__ import main
from surgery.answer.runtime import GREEDY, Runtime
from surgery.base.demo import DEMO
from surgery.base.errors import PackageError
from surgery.base.packed import buffers, packed_entries
from surgery.base.pictures import open_picture
from surgery.engine.loading import load
from surgery.jobs import prepack

N, K, BLOCK = 4096, 16384, 128

LOAD = """
import sys
from pathlib import Path
import numpy as np, onnxruntime as ort
def own():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
start = own()
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
y = session.run(None, {"x": np.ones((1, int(sys.argv[2])), np.float32)})[0]
print(own() - start, float(y.sum()))
"""


@pytest.fixture(scope="module")
def packed(demo, tmp_path_factory):
    """The demo's INT4 package, prepacked."""
    return prepack.prepack(demo.int4, tmp_path_factory.mktemp("packed") / "package")


def proto(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def test_it_answers_as_before(demo, packed):
    """Same greedy tokens, and bit by bit the same logits."""
    found = []
    for folder in (demo.int4, packed):
        runtime = Runtime(folder)
        pictures = [open_picture(DEMO / "images" / "shapes.png")]
        prompt = runtime.prompt(runtime.ask("where is the green rectangle?", 1), pictures)
        tokens = list(runtime.generate(prompt, 8, GREEDY))
        found.append((tokens, runtime.follow(prompt, tokens)))
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1])


def test_verify_takes_it_and_sees_a_changed_copy(packed, tmp_path, capsys):
    """onnxruntime holds each copy to what its kernel packs; with one changed byte it loads none."""
    assert main(["verify", str(packed), "--checkpoint", "demo"]) == 0, capsys.readouterr().out
    broken = shutil.copytree(packed, tmp_path / "broken")
    with (broken / "model.onnx.data").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert main(["verify", str(broken)]) == 1
    assert "do not match the buffers" in capsys.readouterr().out


def test_copies_for_another_processor_are_passed_over(packed, tmp_path):
    """They have other keys, which hold a hash of the copy; weights are packed at loading then."""
    other = shutil.copytree(packed, tmp_path / "other")
    model = proto(other / "model.onnx")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key in packed_entries(tensor):
                entry.value = re.sub(r"\+(\d+)\|", r"+7\1|", entry.value)
    onnx.save(model, other / "model.onnx")
    logits = []
    for folder in (packed, other):
        runtime = Runtime(folder)
        logits.append(runtime.follow(runtime.prompt(runtime.ask("hello")), [1, 2, 3]))
    assert np.array_equal(*logits)


def test_graphs_gain_entries_and_nothing_else(demo, packed):
    before, after = proto(demo.int4 / "model.onnx"), proto(packed / "model.onnx")
    copies = [packed_entries(tensor) for tensor in after.graph.initializer]
    products = [node for node in after.graph.node if node.op_type == "MatMulNBits"]
    assert sum(map(bool, copies)) == len(products) > 20
    for tensor in after.graph.initializer:
        for key in packed_entries(tensor):
            (entry,) = [entry for entry in tensor.external_data if entry.key == key]
            tensor.external_data.remove(entry)
    assert after == before
    for old in demo.int4.glob("*.data"):
        assert (packed / old.name).read_bytes().startswith(old.read_bytes())
    same = {path.name for path in demo.int4.iterdir() if path.suffix not in (".onnx", ".data")}
    for name in same - {"surgery.json"}:
        assert (packed / name).read_bytes() == (demo.int4 / name).read_bytes()
    told = json.loads((packed / "surgery.json").read_text())
    first = json.loads((demo.int4 / "surgery.json").read_text())
    assert told["prepacked"].keys() == {"onnxruntime", "machine"}
    assert told["options"] == first["options"] and told["versions"] == first["versions"]


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """A graph of one product with 32 MB of weights, with and without packed copies."""
    plain, packed = (tmp_path_factory.mktemp("product") / name for name in ("plain", "packed"))
    plain.mkdir()
    packed.mkdir()
    rng = np.random.default_rng(0)
    weights = [
        rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2)).astype(np.uint8),
        rng.random((N, K // BLOCK)).astype(np.float32),
    ]
    names = ("w", "scales")
    node = helper.make_node(
        *("MatMulNBits", ["x", *names], ["y"]), domain="com.microsoft",
        N=N, K=K, bits=4, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", K), ("y", N))
    ]
    graph = helper.make_graph(
        [node],
        "product",
        ports[:1],
        ports[1:],
        [onnx.numpy_helper.from_array(a, name) for a, name in zip(weights, names)],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10),
        *(plain / "m.onnx",),
        save_as_external_data=True,
        location="m.onnx.data",
    )
    shutil.copy(plain / "m.onnx.data", packed)
    assert prepack.write(plain / "m.onnx", packed / "m.onnx", {}) >= N * K // 2
    return plain / "m.onnx", packed / "m.onnx"


def test_a_process_maps_its_weights(product):
    """Its own memory grows by less than a quarter of what it grows by without packed copies."""
    grown, sums = [], []
    for path in product:
        command = [sys.executable, "-c", LOAD, str(path), str(K)]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        grown.append(int(words[0]))
        sums.append(float(words[1]))
    assert sums[0] == sums[1]
    assert grown[0] > N * K // 2 and grown[1] < grown[0] / 4


def test_copies_that_end_behind_the_file_are_refused(product, tmp_path):
    broken = shutil.copytree(product[1].parent, tmp_path / "broken") / "m.onnx"
    assert load(broken).graph.num_nodes() == 1
    model = proto(broken)
    (tensor,) = [t for t in model.graph.initializer if packed_entries(t)]
    ((offset, length),) = buffers(packed_entries(tensor).values())
    with (broken.parent / "m.onnx.data").open("r+b") as file:
        file.truncate(offset + length - 1)
    with pytest.raises(PackageError, match="its packed copy ends at byte"):
        load(broken)


def provider(folder):
    file = folder / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    file.write_text(json.dumps(config))


def unnamed(folder):
    (folder / "surgery.json").unlink()


def cut(folder):
    (folder / "model.onnx").write_bytes(b"\x08")


def outside(folder):
    model = proto(folder / "model.onnx")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../package.data"
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (provider, "made for cuda"),
        (unnamed, "its manifest, is missing"),
        (cut, "no ONNX graph"),
        (outside, "outside the folder of the graph"),
    ],
)
def test_what_cannot_be_packed(demo, tmp_path, capsys, damage, message):
    package = shutil.copytree(demo.int4, tmp_path / "package")
    damage(package)
    assert main(["prepack", str(package)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) in (["package"], [])


def test_not_twice(packed, capsys):
    assert main(["prepack", str(packed), "-o", str(packed.parent / "again")]) == 2
    assert "is prepacked already" in capsys.readouterr().err
