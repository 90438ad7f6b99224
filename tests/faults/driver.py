"""Let one file operation after the other fail, or end the process at it, and look at the output.

    python tests/faults/driver.py JOB LAYOUT MODE FOLDER

JOB is one of those below, at its real file operations but with small graphs. LAYOUT is how the
output takes its place: `exchange`, `renames` (a system that cannot exchange) or `inside` (a mount
point). MODE is what happens at the N-th operation below FOLDER, N = 1, 2, ... until the job no
longer reaches it:

    full       it and all later ones that need space fail with ENOSPC
    broken     it fails with EIO
    interrupt  a signal comes
    kill       SIGKILL

Each attempt runs in a fork. After it, the earlier output or the new one is whole; for a kill, and
for failures amid the moves of `inside`, this holds once the next run has started. Then the job
runs again, undisturbed: it succeeds, and nothing but the output lies in its folder. The result is
one line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

import surgery.jobs.build
from surgery.base import staging
from surgery.base.errors import OutputError
from surgery.base.guard import run

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
{name} (float[b, 64] x, float[64, 64] w) => (float[b, 64] y) {{
  h = MatMul(x, w)
  y = Relu(h)
}}"""
EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"),
    *("os.chmod", "fcntl.flock"),
}
"""Audit events of file operations; wrapped functions report the others."""
NEED_SPACE = {"open to write", "os.mkdir", "fsync", "pwrite", "posix_fallocate"}
LAYOUTS = ("exchange", "renames", "inside")
MODES = ("full", "broken", "interrupt", "kill")
OLD, NEW = 1.0, 2.0
"""Contents of weights."""


class Plan:
    """What happens at which operation; shared with forks."""

    def __init__(self, root: Path) -> None:
        self.root, self.mode, self.at = str(root), "", 0
        self.count = 0
        self.fired = mmap.mmap(-1, 1)

    def reach(self, what: str, *paths: object) -> None:
        """An operation is about to happen."""
        if not self.mode or not any(self.below(path) for path in paths):
            return
        self.count += 1
        if self.count < self.at or (self.mode != "full" and self.count > self.at):
            return
        if self.mode == "full" and what not in NEED_SPACE:
            return
        self.fired[0] = 1
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "interrupt":
            raise KeyboardInterrupt
        code = errno.ENOSPC if self.mode == "full" else errno.EIO
        raise OSError(code, os.strerror(code))

    def below(self, path: object) -> bool:
        """Whether an operation is on the output: a descriptor is, a path where it lies there."""
        return isinstance(path, int) or str(path).startswith(self.root)

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """Audit hook."""
        if event not in EVENTS or not self.mode:
            return
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            if isinstance(args[0], str):
                self.reach("open to write" if writes else event, args[0])
        elif event in ("os.remove", "os.rmdir") and args[1] != -1:
            self.reach(event, args[1])  # relative to an open folder
        else:
            self.reach(event, *args[:2])


def wrapped(plan: Plan, name: str, inner: Callable) -> Callable:
    """A function of `os` that the plan hears of."""

    def call(*args):
        plan.reach(name, args[0])
        return inner(*args)

    return call


def model(name: str, number: float) -> ir.Model:
    """A small graph with a weight for a data file."""
    made = ir.from_onnx_text(TEXT.format(name=name))
    weight = made.graph.inputs.pop()
    weight.const_value = ir.tensor(np.full((64, 64), number, np.float32), name="w")
    made.graph.register_initializer(weight)
    return made


def saving(folder: Path) -> Callable[[float], None]:
    """`Graph.save`."""
    from surgery.graph import Graph

    return lambda number: Graph(model("small", number)).save(folder / "out", force=True)


def applying(folder: Path) -> Callable[[float], None]:
    """`apply` on a file."""
    paths = {}
    for number in (OLD, NEW):
        paths[number] = folder.parent / f"input{number}" / "small.onnx"
        paths[number].parent.mkdir()
        ir.save(model("small", number), paths[number])
    return lambda number: surgery.apply(paths[number], folder / "out", force=True)


def exporting(folder: Path) -> Callable[[float], None]:
    """`export` of the demo checkpoint, its graphs traced before."""
    import export_min
    import export_min.trace

    os.cpu_count = lambda: 1  # no second process, which would trace

    def export(number: float) -> None:
        graphs = [(name, model(name, number)) for name in export_min.GRAPHS]
        export_min.trace_all = lambda source, names: iter(graphs)
        export_min.export(None, folder / "out", force=True)

    return export


def building(folder: Path) -> Callable[[float], None]:
    """`build` of a package, its passes run before."""
    raw = folder.parent / "raw"
    raw.mkdir()
    exporting(raw)(OLD)

    def build(number: float) -> None:
        made = {name: model(name, number) for name in ("vision", "embedding", "decoder")}
        surgery.jobs.build.operate = lambda *_, **__: made
        surgery.jobs.build.build(raw / "out", folder / "out", force=True)

    return build


JOBS = {"save": saving, "apply": applying, "export": exporting, "build": building}


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder by its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def forked(work: Callable[[], None]) -> int:
    """Run something as a command in a fork; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 99
        with contextlib.redirect_stderr(io.StringIO()):
            code = run(lambda: bool(work()) and None)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(
    plan: Plan, job: Callable[[float], None], folder: Path, mode: str, layout: str
) -> list[str]:
    """One attempt that fails, and one after it; what was not as it must be."""
    plan.mode, plan.count = mode, 0
    code = forked(lambda: job(NEW))
    plan.mode = ""
    faults = []
    wanted = {"full": (2,), "broken": (0, 2), "interrupt": (130,), "kill": (-9,)}[mode]
    if plan.fired[0] and code not in wanted:
        faults.append(f"exit code {code}")
    if mode == "kill" or layout == "inside":
        with contextlib.suppress(OutputError):  # refused, but what was left is put in order
            staging.check_free(folder / "out")
    if files(folder / "out") not in (OUTPUTS[OLD], OUTPUTS[NEW]):
        faults.append("neither the earlier output nor the new one")
    if mode not in ("kill", "broken") and sorted(os.listdir(folder)) != ["out"]:
        faults.append(f"left behind: {sorted(os.listdir(folder))}")
    code = forked(lambda: job(NEW))
    if code or files(folder / "out") != OUTPUTS[NEW]:
        faults.append(f"the next run fails with {code}")
    if sorted(os.listdir(folder)) != ["out"]:
        faults.append(f"left behind after the next run: {sorted(os.listdir(folder))}")
    return faults


OUTPUTS: dict[float, dict[str, str]] = {}
"""The files of an undisturbed output, by content."""


def main(name: str, layout: str, mode: str, place: str) -> None:
    """Try every operation of a job."""
    folder = Path(place).resolve() / "outputs"
    folder.mkdir()
    plan = Plan(folder)
    job = JOBS[name](folder)
    if layout == "renames":
        staging.exchange = lambda one, other: False
    elif layout == "inside":
        staging.is_fixed = lambda target: True
        (folder / "out").mkdir()
    else:
        exchange = staging.exchange
        staging.exchange = lambda one, other: (plan.reach("exchange", one), exchange(one, other))[1]
    for number in (NEW, OLD):
        job(number)  # here, so that forks find all modules imported
        OUTPUTS[number] = files(folder / "out")
    earlier = folder.parent / "earlier"
    shutil.copytree(folder / "out", earlier)
    sys.addaudithook(plan.hook)
    for call in ("fsync", "pwrite", "posix_fallocate"):
        setattr(os, call, wrapped(plan, call, getattr(os, call)))
    wrong: dict[int, list[str]] = {}
    while True:
        plan.at += 1
        plan.fired[0] = 0
        faults = attempt(plan, job, folder, mode, layout)
        if not plan.fired[0]:
            break
        if faults:
            wrong[plan.at] = faults
        shutil.rmtree(folder / "out")
        shutil.copytree(earlier, folder / "out")
    print(json.dumps({"points": plan.at - 1, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
