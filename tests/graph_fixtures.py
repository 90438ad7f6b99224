"""Fixtures that many tests share: graphs written as ONNX text, golden files, near-misses, numbers.

A test module of a pass (`tests/passes`) holds `BEFORE`, the smallest graph where the pass acts,
and `make()`, the pass. Inputs whose names end in `_weight` or `_bias` become weights that lie in a
file, as those of a checkpoint do. The contract test finds each pass's module by its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from filelock import FileLock

from surgery.rewrite import view
from surgery.rewrite.builder import prune
from surgery.rewrite.contract import Pass
from surgery.rewrite.scope import SCOPES

ROOT = Path(__file__).resolve().parents[1]
HEADER = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>\n'
MODULE = "model.layers.0.part"
"""Torch module that the nodes of a test graph come from."""

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files of graphs"
    )


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., ir.Model]:
    """A maker of graphs from ONNX text: `build(text)`, or with `module=None` no metadata at all."""
    return lambda text, module=MODULE: built(text, tmp_path, module)


def built(text: str, folder: Path, module: str | None = MODULE) -> ir.Model:
    """A graph from ONNX text, its weights in files of a folder."""
    opset = "" if text.lstrip().startswith("<") else HEADER
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(opset + text))
    model = ir.from_proto(proto)
    for value in list(model.graph.inputs):
        if (value.name or "").endswith(("_weight", "_bias")):
            model.graph.inputs.remove(value)
            store(value, folder)
            model.graph.register_initializer(value)
    for i, node in enumerate(n for graph in model.graphs() for n in graph):
        ir.convenience.get_const_tensor(node.outputs[0])  # gives it its name, at the first look
        node.name = node.name or f"node_{i}"
        if module is not None:
            node.metadata_props[SCOPES] = repr(["", "model", module, node.name])
    prune(model)
    return model


def store(value: ir.Value, folder: Path) -> None:
    """Let a value be a weight in a file, its numbers drawn by its name."""
    assert value.shape is not None and value.dtype is not None and value.name is not None
    rng = np.random.default_rng(zlib.crc32(value.name.encode()))
    shape = tuple(int(d) for d in value.shape)  # type: ignore[call-overload]
    array = (0.5 * rng.standard_normal(shape) + 0.1).astype(value.dtype.numpy())
    file = folder / f"{value.name}.bin"
    file.write_bytes(b"head" * 16 + array.tobytes())
    value.const_value = ir.ExternalTensor(
        file.name, 64, array.nbytes, value.dtype, shape=ir.Shape(shape), name=value.name,
        base_dir=folder,
    )  # fmt: skip


@pytest.fixture
def golden_text(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `golden/NAME.txt` in the folder of the test."""

    def check(name: str, found: str) -> None:
        file = request.path.parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden", False):
            file.write_text(found, encoding="utf-8")
        kept = file.read_text(encoding="utf-8") if file.is_file() else ""
        difference = view.diff(kept, found, (f"golden/{file.name}", "now"))
        assert not difference, (
            f"\n{difference}\nIf this is meant: pytest {request.path.parent} --update-golden"
        )

    return check


@pytest.fixture
def golden(golden_text: Callable[[str, str], None]) -> Callable[[Pass, ir.Model], None]:
    """Apply a pass and compare the graph before and after with the golden file of its name."""

    def check(work: Pass, model: ir.Model) -> None:
        before = view.text(model)
        work(model)
        after = view.text(model)
        golden_text(work.name, f"== before\n{before}\n== after, sites: {work.count}\n{after}")

    return check


@pytest.fixture
def untouched() -> Callable[[Pass, ir.Model, str], None]:
    """A pass leaves a graph byte for byte, and its nearest miss names a condition."""

    def check(work: Pass, model: ir.Model, reason: str) -> None:
        before, data = view.text(model), ir.to_proto(model).SerializeToString(deterministic=True)
        assert work.sites(model) == []
        result = work(model)
        assert (work.count, result.modified) == (0, False)
        assert view.diff(before, view.text(model)) == ""
        assert ir.to_proto(model).SerializeToString(deterministic=True) == data
        misses = work.near_misses(model)
        assert misses or not reason, f"no near-miss, should say: {reason}"
        assert not reason or reason in str(misses[0]), f"says {misses[0]}, should say: {reason}"

    return check


@pytest.fixture
def run() -> Callable[[ir.Model, Feeds], dict[str, Array]]:
    """Run a graph, wherever its weights lie."""
    return lambda model, feeds: Runner(model)(feeds)


class Runner:
    """A graph in onnxruntime, not optimized, its weights inlined."""

    def __init__(self, model: ir.Model) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            inlined(model), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; arrays for inputs that the graph no longer has are left out."""
        wanted = {name: array for name, array in feeds.items() if name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, wanted), strict=True))


def inlined(model: ir.Model) -> bytes:
    """A model with its weights inside."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.Tensor(
                np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name
            )
    return ir.to_proto(copy).SerializeToString()


@pytest.fixture
def runner_of() -> type[Runner]:
    """A graph in onnxruntime, to run many times."""
    return Runner


@pytest.fixture
def run_inlined() -> Callable[[ir.Model], bytes]:
    """A graph as bytes that onnxruntime has loaded."""

    def load(model: ir.Model) -> bytes:
        Runner(model)
        return inlined(model)

    return load


@pytest.fixture
def same_numbers() -> Callable[..., None]:
    """A graph computes the same before and after a pass, on every given input.

    Bit for bit by default; `rtol` and `atol` where a pass may round otherwise.
    """

    def check(
        work: Pass, model: ir.Model, inputs: Iterable[Feeds], rtol: float = 0, atol: float = 0
    ) -> None:
        before = Runner(model)
        work(model)
        assert work.count > 0, "the pass did nothing"
        after = Runner(model)
        for feeds in inputs:
            want, got = before(feeds), after(feeds)
            shapes = {name: array.shape for name, array in feeds.items()}
            assert want.keys() == got.keys()
            for name in want:
                assert want[name].dtype == got[name].dtype, name
                np.testing.assert_allclose(
                    got[name], want[name], rtol=rtol, atol=atol, err_msg=f"{name} at {shapes}"
                )

    return check


@pytest.fixture(scope="session")
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw export of a small random model; kept in pytest's cache until the exporter changes."""
    script = ROOT / "tests" / "surgery" / "random_export.py"
    versions = [version(name) for name in ("torch", "transformers", "onnx-ir", "onnxscript")]
    digest = hashlib.sha256(" ".join(versions).encode())
    for file in sorted([script, *(ROOT / "export_min").glob("**/*.py")]):
        digest.update(file.read_bytes())
    cache = request.config.cache
    base = tmp_path_factory.mktemp("export") if cache is None else cache.mkdir("random_export")
    folder = base / digest.hexdigest()[:16]
    with FileLock(f"{folder}.lock"):  # processes of pytest-xdist share the cache
        if not (folder / "raw").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, str(script), str(folder)],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
    return folder / "raw"


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers, the same at every run."""
    return np.random.default_rng(7)
