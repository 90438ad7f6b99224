"""Outputs that cannot be written, and runs that are cut short: what stood there stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
import pytest
from conftest import digest

from export_min.__main__ import main as export
from surgery.__main__ import main as build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def traced(raw, monkeypatch):
    """Graphs that were traced before: tracing takes longer than everything that is tested here."""
    parts = ("vision", "embedding", "decoder")
    graphs = [(part, ir.load(raw / f"{part}.onnx")) for part in parts]
    monkeypatch.setattr("export_min.trace_all", lambda source, names: iter(graphs))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # or another process would trace some anew


@pytest.fixture(params=["export", "build"])
def command(request, checkpoint, raw, traced):
    """Each of the two commands that write directories, its input given."""
    return (export, "-i", checkpoint) if request.param == "export" else (build, "-i", raw)


def test_a_directory_that_is_not_empty(refused, command, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    assert "not empty" in refused(*command, "-o", target)
    assert "not an earlier output" in refused(*command, "-o", target, "--force")
    assert (target / "precious.txt").read_text() == "mine"


def test_a_file(refused, command, tmp_path):
    (tmp_path / "target").write_text("mine")
    assert "is a file" in refused(*command, "-o", tmp_path / "target", "--force")


@pytest.mark.parametrize("place", ["{file}/target", "{file}/deep/target", "/proc/target"])
def test_a_place_where_nothing_can_be(refused, command, tmp_path, place):
    (tmp_path / "file").write_text("")
    target = place.format(file=tmp_path / "file")
    assert "cannot be written" in refused(*command, "-o", target)


def test_folders_made_for_a_failed_output_go_again(refused, command, tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    assert "No space left on device" in refused(
        *command, "-o", tmp_path / "new" / "deep" / "target"
    )


def fill_disk(monkeypatch):
    """Let every file that is written or reserved run out of space."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setattr("onnx_ir.save", full)


def test_a_full_disk_leaves_the_earlier_output(refused, command, tmp_path, monkeypatch):
    target = earlier(tmp_path)
    before = digest(target)
    fill_disk(monkeypatch)
    assert "No space left on device" in refused(*command, "-o", target, "--force")
    assert digest(target) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, where one can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(refused, command, small_disk):
    target = earlier(small_disk)
    before = digest(target)
    assert "No space left on device" in refused(*command, "-o", target, "--force")
    assert digest(target) == before


def test_a_read_only_disk(refused, command, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in refused(*command, "-o", small_disk / "target")


def earlier(folder):
    """An earlier output, to either command."""
    target = folder / "target"
    target.mkdir()
    (target / "manifest.json").write_text("{}")
    (target / "model.onnx").write_bytes(b"an earlier graph")
    return target


SLOW = """
import sys, time
import {module} as module
def slow(*args, **kwargs):
    time.sleep(2)
module.{function} = slow
from {package}.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A command that gets stuck in the middle of its output."""

STUCK = {
    "export": {"package": "export_min", "module": "export_min.trace", "function": "trace"},
    "build": {
        "package": "surgery",
        "module": "surgery.package.external_data",
        "function": "write_at",
    },
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("export", signal.SIGINT),
        ("export", signal.SIGTERM),
        ("export", signal.SIGKILL),
        ("build", signal.SIGINT),
        ("build", signal.SIGKILL),
    ],
)
def test_a_run_that_is_cut_short_leaves_the_earlier_output(checkpoint, raw, tmp_path, name, how):
    folder = tmp_path / "outputs"
    folder.mkdir()
    target = earlier(folder)
    before = digest(target)
    source = checkpoint if name == "export" else raw
    words = ["-i", str(source), "-o", str(target), "--force"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW.format(**STUCK[name]), *words]
    pipes = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": heed_ctrl_c}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            wait_for(lambda: any(folder.glob(".target.*.partial")))
            time.sleep(1)
            process.send_signal(how)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert digest(target) == before
    left = [path.name for path in folder.iterdir() if path != target]
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and len(left) == 1
        fails_and_cleans(folder, target)
    else:
        assert process.returncode == 130 and not left
        assert "interrupted; nothing was written" in err and "Traceback" not in err


def heed_ctrl_c():
    """A shell's background job ignores SIGINT, and what it starts inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the command never came so far"
        time.sleep(0.05)


def fails_and_cleans(folder, target):
    """The next run to the same place removes what a killed one left beside it."""
    from surgery.base.staging import staged

    with pytest.raises(RuntimeError), staged(target, force=True):
        raise RuntimeError
    assert list(folder.iterdir()) == [target]


def test_build_over_its_own_input(refused, raw):
    """--force replaces an earlier output of ours, never the input of the same run."""
    before = digest(raw)
    assert "is the raw export itself" in refused(build, "-i", raw, "-o", raw, "--force")
    assert digest(raw) == before
