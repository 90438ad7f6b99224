"""`surgery.olive`: the passes inside a run of Olive."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_fixtures import ROOT
from small_graph import feeds, write

from surgery.base.errors import UserError
from surgery.olive import chosen

STEPS = [
    "tidy",
    {"pass": "rms_norm", "expect": 1},
    {"pass": "silu", "expect": 1},
    {"pass": "matmul_nbits", "bits": 8, "block": 32, "expect": 3},
]


def test_passes_of_a_configuration() -> None:
    names = [work.name for work in chosen(STEPS)]
    assert names[0] == "shapes" and names[-3:] == ["rms_norm", "silu", "matmul_nbits"]
    assert chosen([{"pass": "silu", "expect": 7}])[0].expect == 7


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("rms_nrom", "no pass 'rms_nrom'"),
        ({"expect": 1}, "no pass None"),
        ({"pass": "silu", "exepct": 1}, "silu: .*unexpected keyword argument 'exepct'"),
    ],
)
def test_a_pass_that_cannot_be_made(step: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen([step])  # type: ignore[list-item]


@pytest.mark.skipif(importlib.util.find_spec("olive") is None, reason="olive-ai is not installed")
@pytest.mark.parametrize("external", [False, True])
def test_a_run_of_olive(tmp_path: Path, external: bool) -> None:
    """`olive run` with a package configuration, on a graph with its weights inside or beside it."""
    source = write(tmp_path / "layer.onnx", external)
    package = {"passes": {"Surgery": {"module_path": "surgery.olive.Surgery"}}}
    run = {
        "input_model": {"type": "OnnxModel", "model_path": str(source)},
        "passes": {"surgery": {"type": "Surgery", "passes": STEPS}},
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    for name, config in (("package.json", package), ("run.json", run)):
        (tmp_path / name).write_text(json.dumps(config), encoding="utf-8")
    words = ["run", "--config", "run.json", "--package-config", "package.json"]
    done = subprocess.run(
        [sys.executable, "-m", "olive", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OLIVE_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (tmp_path / "out").rglob("*.onnx")
    ops = [node.op_type for node in onnx.load(result, load_external_data=False).graph.node]
    assert ops.count("MatMulNBits") == 3 and ops.count("RMSNormalization") == 1
    before, after = (ort.InferenceSession(p, providers=["CPUExecutionProvider"])
                     for p in (source, result))  # fmt: skip
    (want,), (got,) = before.run(None, feeds()), after.run(None, feeds())
    assert 0 < np.abs(got - want).max() < 1e-2 * np.abs(want).max(), "8 bits are near, not equal"
