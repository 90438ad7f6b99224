"""The same checkpoint and options give the same bytes, wherever and however the build runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = "manifest.json"
"""The file of a raw export that names the checkpoint."""


def run(*words: object, cwd: Path, **environment: str) -> None:
    """Run a command of ours in another process."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def first(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A package built in one folder."""
    folder = tmp_path_factory.mktemp("first")
    run("surgery", "-i", raw, "-o", "out", "--quiet", cwd=folder, PYTHONHASHSEED="1")
    return contents(folder / "out")


def test_hash_seeds_and_folders(raw: Path, first: dict[str, bytes], tmp_path: Path) -> None:
    """Another seed of Python's hashes, another working directory, another name of the output."""
    run("surgery", "-i", raw, "-o", "other/name", "--quiet", cwd=tmp_path, PYTHONHASHSEED="2")
    assert contents(tmp_path / "other" / "name") == first


def test_one_thread(raw: Path, first: dict[str, bytes], tmp_path: Path) -> None:
    """One processor: the writer and the quantizer use as many threads as there are processors."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    script = tmp_path / "one.py"
    script.write_text(
        "import os, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "os.cpu_count = lambda: 1\n"
        "from surgery.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "-i", str(raw), "-o", str(tmp_path / "out"), "--quiet"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == first


@pytest.mark.nightly  # exports and builds twice, which takes minutes
def test_the_path_of_the_checkpoint(raw: Path, first: dict[str, bytes], tmp_path: Path) -> None:
    """A moved checkpoint gives the same package; only the manifest of the export names it."""
    checkpoint = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(raw.parent / "checkpoint", checkpoint)
    run("export_min", "-i", checkpoint, "-o", tmp_path / "raw", cwd=tmp_path)
    before, after = contents(raw), contents(tmp_path / "raw")
    del before[NAMES], after[NAMES]
    assert {name: data for name, data in after.items() if name.endswith(".onnx")} == {
        name: data for name, data in before.items() if name.endswith(".onnx")
    }
    run("surgery", "-i", tmp_path / "raw", "-o", tmp_path / "out", "--quiet", cwd=tmp_path)
    assert contents(tmp_path / "out") == first
