"""Every file operation of every job fails once, or is the last of its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("driver.py")
CASES = [
    *(("save", layout) for layout in ("exchange", "renames", "inside")),
    ("apply", "exchange"),
    *(pytest.param(job, "exchange", marks=pytest.mark.nightly) for job in ("export", "build")),
]
"""Jobs and the ways in which their output takes its place: some 700 points of `save` and `apply`,
and 560 of `export` and `build`, which take longer."""
LEAST = 25
"""Operations that even the smallest job has."""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and exchanges folders")
@pytest.mark.parametrize("mode", ["full", "broken", "interrupt", "kill"])
@pytest.mark.parametrize(("job", "layout"), CASES)
def test_earlier_output_or_new_one(job, layout, mode, tmp_path):
    words = [sys.executable, str(DRIVER), job, layout, mode, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["points"] >= LEAST
    assert result["wrong"] == {}
