"""Decoders for WebGPU in float32, on a GPU or on SwiftShader: what the same graph gives on a CPU.

tests/webgpu/README.md shows what to install. Without the plugin or an adapter they are skipped.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from surgery.base.plugins import PLUGINS
from surgery.engine.options import Options
from surgery.verify.graphs import FOLDER, in_float

pytestmark = pytest.mark.nightly  # SwiftShader compiles shaders for minutes

TOLERANCE = 2e-5
"""Of the largest value; the order of sums differs."""
ROUNDED = 2e-2
"""The same where products round activations to int8: both providers do, each its own way."""
ON_CPU = {"Cast": 2, "ReduceSum": 1, "Shape": 1, "Squeeze": 1, "Sub": 1}
"""Nodes of a decoder that stay on the CPU: the lengths that attention takes, in int64."""
SHORT = ((1, 25, 0), (1, 1, 25), (1, 6, 9))
"""Batch, new tokens, cached tokens."""
LONG = (1, 40, 0)
"""With 32 new tokens or more another kernel runs, which gives wrong rows on SwiftShader."""

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def device() -> Any:
    """The plugin's device; without one the tests are skipped, and the reason says why."""
    plugin = pytest.importorskip(PLUGINS["webgpu"].module, reason="the plugin is not installed")
    ort.set_default_logger_severity(3)
    ort.register_execution_provider_library("webgpu", plugin.get_library_path())
    name = plugin.get_ep_name()
    found = next((d for d in ort.get_ep_devices() if d.ep_name == name), None)
    if found is None:
        pytest.skip("the plugin finds no device: no GPU, and no software adapter allowed")
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) {y = Abs(x)}'
    try:
        session(onnx.parser.parse_model(text).SerializeToString(), Path(), found)
    except Exception as e:  # onnxruntime's own classes
        pytest.skip(f"no WebGPU adapter: {e}")
    return found


def session(graph: bytes, folder: Path, device: Any = None, **entries: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(FOLDER, str(folder))
    if "profile" in entries:
        options.enable_profiling, options.profile_file_prefix = True, entries.pop("profile")
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    if device is None:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    options.add_provider_for_devices([device], {})
    return ort.InferenceSession(graph, options)


def feeds(graph: ort.InferenceSession, batch: int, new: int, cached: int) -> Feeds:
    rng = np.random.default_rng(new)
    sizes = {"batch": batch, "sequence": new, "past": cached, "total": cached + new}
    found = {}
    for value in graph.get_inputs():
        shape = [d if isinstance(d, int) else sizes[d] for d in value.shape]
        found[value.name] = rng.standard_normal(shape).astype(np.float32)
    found["attention_mask"] = np.ones((batch, cached + new), np.int64)
    found["position_ids"] = rng.integers(0, 40, (3, batch, new))
    return found


def same(graph: ort.InferenceSession, wanted: list[np.ndarray], feed: Feeds, most: float) -> None:
    for value, want in zip(graph.get_outputs(), wanted, strict=True):
        found = graph.run([value.name], feed)[0]
        assert found.shape == want.shape
        assert abs(found - want).max() <= most * abs(want).max(), value.name


def without_lengths(graph: bytes) -> tuple[bytes, str, str]:
    """A decoder with the lengths of attention as inputs in place of the mask, and their names."""
    model = onnx.load_from_string(graph)
    node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    row, total = node.input[5:7]
    made = {name: n for n in model.graph.node for name in n.output}
    pending, dropped = [row, total], []
    while pending:
        source = made.get(pending.pop())
        if source is not None and source not in dropped:
            dropped.append(source)
            pending += source.input
    for source in dropped:
        model.graph.node.remove(source)
    mask = next(v for v in model.graph.input if v.name == "attention_mask")
    model.graph.input.remove(mask)
    int32 = onnx.TensorProto.INT32
    model.graph.input.append(onnx.helper.make_tensor_value_info(row, int32, ["batch"]))
    model.graph.input.append(onnx.helper.make_tensor_value_info(total, int32, []))
    return model.SerializeToString(), row, total


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", ["demo", "untied"])
def test_decoder(
    cases: Callable[[str], Any], device: Any, tmp_path: Path, name: str, precision: str
) -> None:
    """The numbers of a CPU, and the nodes that stay there; none does but the lengths'."""
    options = Options(text_precision=precision, execution_provider="webgpu", max_length=4096)
    package = cases(name).build(f"{precision}-webgpu", options)
    graph = in_float(package / "model.onnx")
    cpu = session(graph, package)
    gpu = session(graph, package, device, profile=str(tmp_path / "run"))
    software = device.device.type == ort.OrtHardwareDeviceType.CPU
    shapes = SHORT if software else (*SHORT, LONG)
    for shape in shapes:
        feed = feeds(cpu, *shape)
        same(gpu, cpu.run(None, feed), feed, TOLERANCE)
    events = json.loads(Path(gpu.end_profiling()).read_text(encoding="utf-8"))
    nodes = [e["args"] for e in events if e.get("cat") == "Node" and "provider" in e["args"]]
    there = collections.Counter(
        n["op_name"] for n in nodes if n["provider"] == "CPUExecutionProvider"
    )
    runs = len(shapes) * len(cpu.get_outputs())
    assert {op: count / runs for op, count in there.items()} == ON_CPU

    inner, row, total = without_lengths(graph)
    alone = session(inner, package, device, session__disable_cpu_ep_fallback="1")
    batch, new, cached = SHORT[0]
    feed = feeds(cpu, batch, new, cached)
    wanted = cpu.run(None, feed)
    del feed["attention_mask"]
    feed[row] = np.full(batch, cached + new - 1, np.int32)
    feed[total] = np.array(cached + new, np.int32)
    same(alone, wanted, feed, TOLERANCE)


def test_rounded_activations(demo: Any, device: Any) -> None:
    """As the package runs: products that may round activations to int8."""
    options = Options(execution_provider="webgpu", max_length=4096)
    package = demo.build("int4-webgpu", options)
    graph = (package / "model.onnx").read_bytes()
    cpu, gpu = session(graph, package), session(graph, package, device)
    feed = feeds(cpu, *SHORT[0])
    wanted, found = cpu.run(["logits"], feed)[0], gpu.run(["logits"], feed)[0]
    assert abs(found - wanted).max() <= ROUNDED * abs(wanted).max()


def test_the_runtime_answers(demo: Any, device: Any, tmp_path: Path) -> None:
    """`chat` registers the plugin; the answer about a picture is that of the CPU package.

    The prompt has fewer than 32 tokens, see `LONG`.
    """
    options = Options(text_precision="fp32", execution_provider="webgpu", max_length=4096)
    picture = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(picture)
    answers = []
    for package in (demo.build("fp32-webgpu", options), demo.fp32):
        words = ["chat", package, "--image", picture, "--temperature", 0, "--max-tokens", 8, "hi"]
        command = [sys.executable, "-m", "surgery", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1] and answers[0].strip()
