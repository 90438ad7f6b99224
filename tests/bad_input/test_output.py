"""Outputs that cannot be written, and runs that are cut short: what stood there stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from refusal import digest

from export_min.__main__ import main as export
from surgery import Graph, load
from surgery.__main__ import main as build
from surgery.base.errors import OutputError, UserError
from surgery.base.manifest import changes, write
from surgery.base.staging import staged

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
    assert (tmp_path / "target").read_text() == "mine"


def pipe(path):
    os.mkfifo(path)


def device(path):
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device is not allowed here")


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a path of a socket is short


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [pipe, device, unix_socket, loop])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_directory(refused, command, tmp_path, make, linked):
    make(tmp_path / "thing")
    (tmp_path / "link").symlink_to("thing")
    mode = (tmp_path / "thing").lstat().st_mode
    line = refused(*command, "-o", tmp_path / ("link" if linked else "thing"), "--force")
    assert "needs to be a directory" in line or "Symbolic link loop" in line
    assert (tmp_path / "thing").lstat().st_mode == mode


def test_a_link_to_a_directory(command, tmp_path):
    """The output appears where the link leads, and the link stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    main, *words = command
    assert main([*map(str, words), "-o", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and not list(changes(tmp_path / "real"))


def test_a_deleted_working_directory(refused, command, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "No such file or directory" in refused(*command, "-o", "target")


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


def test_a_mount_point(command, small_disk, tmp_path):
    """What is mounted cannot be renamed; the output appears in it all the same."""
    subprocess.run(["mount", "-o", "remount,size=40M", str(small_disk)], check=True)
    main, *words = command
    line = [*map(str, words), "-o", str(small_disk)]
    before = sorted(tmp_path.iterdir())
    assert main(line) == 0 and main([*line, "--force"]) == 0
    assert not list(changes(small_disk))
    assert sorted(tmp_path.iterdir()) == before
    assert not list(small_disk.glob(".*"))
    (small_disk / "mine.txt").write_text("mine")
    assert main([*line, "--force"]) == 2


def test_a_mount_point_that_fills_up(refused, command, small_disk):
    (small_disk / "model.onnx").write_bytes(b"an earlier graph")
    write(small_disk, {"kind": "package"})
    before = digest(small_disk)
    assert "No space left on device" in refused(*command, "-o", small_disk, "--force")
    assert digest(small_disk) == before


def test_a_read_only_disk(refused, command, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in refused(*command, "-o", small_disk / "target")


def earlier(folder):
    """An earlier output, to either command."""
    target = folder / "target"
    target.mkdir()
    (target / "model.onnx").write_bytes(b"an earlier graph")
    write(target, {"kind": "package"})
    return target


SLOW = """
import sys, time
import {module} as module
real = module.{function}
def slow(*args, **kwargs):
    time.sleep(2)
    return real(*args, **kwargs)  # where the signal comes late, the run goes on
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
        ("build", signal.SIGHUP),
        ("build", signal.SIGQUIT),
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
            wait_for(lambda: (folder / ".target.surgery-new").exists())
            time.sleep(1)
            process.send_signal(how)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert digest(target) == before
    left = [path.name for path in folder.iterdir() if path != target]
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and len(left) == 2
        fails_and_cleans(folder, target)
    else:
        assert process.returncode == 128 + how and not left
        assert err.endswith("interrupted\n") and "Traceback" not in err


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
    with pytest.raises(RuntimeError), staged(target, force=True):
        raise RuntimeError
    assert list(folder.iterdir()) == [target]


def test_build_over_its_own_input(refused, raw):
    """--force replaces an earlier output of ours, never the input of the same run."""
    before = digest(raw)
    assert "holds the input" in refused(build, "-i", raw, "-o", raw, "--force")
    assert digest(raw) == before


def test_apply_over_its_own_input(refused, tmp_path):
    """Nor do the neighbours of a graph go that is taken from an earlier output."""
    out = tmp_path / "out"
    graphs = {name: ir.from_onnx_text(TINY) for name in ("decoder.onnx", "vision.onnx")}
    with staged(out, about={"kind": "graphs"}) as stage:
        for name, graph in graphs.items():
            ir.save(graph, stage / name)
    before = digest(out)
    line = refused(build, "apply", "-i", out / "decoder.onnx", "-o", out, "--force")
    assert "holds the input" in line and digest(out) == before


def test_save_over_its_own_weights(tmp_path):
    """The graph in memory reads its weights there when it is next used."""
    graph = ir.from_onnx_text(TINY)
    weight = graph.graph.inputs.pop()
    weight.const_value = ir.tensor(np.ones((64, 64), np.float32), name="w")
    graph.graph.register_initializer(weight)
    path = Graph(graph).save(tmp_path / "out", "tiny.onnx")
    before = digest(tmp_path / "out")
    with pytest.raises(OutputError, match="holds the input"):
        load(path).save(tmp_path / "out", force=True)
    assert digest(tmp_path / "out") == before
    for name in ("../tiny.onnx", "deep/tiny.onnx"):
        with pytest.raises(UserError, match="must be a file name"):
            load(path).save(tmp_path / "other", name)


TINY = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[b, 64] x, float[64, 64] w) => (float[b, 64] y) { y = MatMul(x, w) }"""


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_checkpoint_that_was_cut(refused, exported, raw, tmp_path, cut):
    """Between the export and the build: one line that names the shard."""
    manifest = json.loads((raw / "manifest.json").read_text())
    copy = tmp_path / "checkpoint"
    shutil.copytree(manifest["checkpoint"], copy)
    text = (raw / "manifest.json").read_text().replace(manifest["checkpoint"], str(copy))
    (raw / "manifest.json").write_text(text)
    shard = copy / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - cut)
    line = refused(build, "-i", raw, "-o", tmp_path / "target")
    assert "model.safetensors: changed since the export" in line


def test_a_package_holds_no_path(traced, exported, raw, tmp_path):
    """No file tells where the checkpoint and the output lie."""
    assert build(["-i", str(raw), "-o", str(tmp_path / "package")]) == 0
    for path in (tmp_path / "package").iterdir():
        whole = path.read_bytes()
        assert str(exported.parent).encode() not in whole and str(tmp_path).encode() not in whole
    assert "# checkpoint, ONNX" in (tmp_path / "package" / "README.md").read_text()
