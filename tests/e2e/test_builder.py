"""The finished decoder against the runtime's own builder, node for node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from case import Case

from surgery.engine.loading import load
from surgery.rewrite import view

# Our decoder carries DeepStack: one Split, and one Add a level. The builder's drops it.
DEEPSTACK = 1 + 3


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_no_more_nodes_than_the_builder(
    cases: Callable[[str], Case], precision: str, tmp_path: Path
) -> None:
    case = cases("demo")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", precision]
    command += ["-i", str(case.checkpoint), "-o", str(tmp_path / "out"), "-e", "cpu"]
    command += ["-c", str(tmp_path / "cache")]
    command += ["--extra_options", "exclude_embeds=true", "prune_lm_head=true"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    theirs = view.size(load(tmp_path / "out" / "model.onnx"))
    ours = view.size(load((case.fp32 if precision == "fp32" else case.int4) / "model.onnx"))

    layers = 4
    assert ours - DEEPSTACK <= theirs - layers  # SiLU is one node here and two there
    assert ours <= theirs
