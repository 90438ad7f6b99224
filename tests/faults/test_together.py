"""Several runs on one output: one at a time, and each leaves a whole output."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from surgery.base import manifest, staging
from surgery.base.errors import OutputError
from surgery.base.staging import check_free, staged

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"kind": "graphs", "versions": {}, "options": {}}

PROCESS = """
import sys, time
from pathlib import Path
from surgery.base.errors import OutputError
from surgery.base.staging import staged
target, mark = Path(sys.argv[1]), sys.argv[2]
done = refused = 0
while done < 20:
    try:
        with staged(target, force=True) as stage:
            for name in ("a", "b", "c"):
                (stage / name).write_text(mark)
                time.sleep(0.001)
        done += 1
    except OutputError as e:
        assert "another run is writing it" in str(e), e
        refused += 1
        time.sleep(0.001)
print(refused)
"""


def put(target: Path, mark: str) -> None:
    with staged(target, True, ABOUT) as stage:
        for name in ("a", "b", "c"):
            (stage / name).write_text(mark)


def whole(target: Path) -> str:
    """The mark of an output that comes from one run."""
    marks = {(target / name).read_text() for name in ("a", "b", "c")}
    assert len(marks) == 1 and not list(manifest.changes(target))
    return marks.pop()


@pytest.mark.parametrize("fixed", [False, True])
def test_processes(tmp_path, fixed):
    """Four processes write one output over and over; process ids play no part."""
    target = tmp_path / "out"
    put(target, "first")
    code = PROCESS
    if fixed:
        code = "from surgery.base import staging; staging.is_fixed = lambda target: True\n" + code
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(target), str(n)], env=environment)
        for n in range(4)
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0, 0]
    assert whole(target) in "0123"
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(target)) == ["a", "b", "c", "surgery.json"]


def test_threads(tmp_path):
    """The second thread is refused while the first one writes, and its stage stays."""
    target = tmp_path / "out"
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with staged(target, True, ABOUT) as stage:
            (stage / "a").write_text("first")
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(60)
    for attempt in (lambda: put(target, "second"), lambda: check_free(target)):
        with pytest.raises(OutputError, match="another run is writing it"):
            attempt()
    leave.set()
    thread.join()
    assert (target / "a").read_text() == "first"
    put(target, "second")
    assert whole(target) == "second"


def test_a_lock_file_without_its_process(tmp_path):
    """A lock is held by the kernel for a process: the file alone means nothing."""
    (tmp_path / ".out.surgery-lock").write_text("")
    put(tmp_path / "out", "first")
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """The hidden folder of a run keeps others away, and nothing of theirs is tidied."""
    import errno

    def none(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("surgery.base.locks.lock", none)
    with (
        staged(tmp_path / "out", True, ABOUT) as stage,
        pytest.raises(OutputError, match="cannot be written: File exists"),
    ):
        (stage / "a").write_text("first")
        put(tmp_path / "out", "second")
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("layout", ["exchange", "renames", "inside"])
@pytest.mark.parametrize("earlier", [True, False])
def test_files_that_appear_meanwhile(tmp_path, monkeypatch, layout, earlier):
    """What somebody puts at the output during a run is never deleted."""
    if layout == "renames":
        monkeypatch.setattr("surgery.base.staging.exchange", lambda one, other: False)
    target = tmp_path / "out"
    if layout == "inside":
        monkeypatch.setattr("surgery.base.staging.is_fixed", lambda target: True)
        target.mkdir()
    if earlier:
        put(target, "first")
    with (
        pytest.raises(OutputError, match=r"mine.txt|not empty"),
        staged(target, earlier, ABOUT) as stage,
    ):
        (stage / "a").write_text("second")
        target.mkdir(exist_ok=True)
        (target / "mine.txt").write_text("mine")
    assert (target / "mine.txt").read_text() == "mine"
    if earlier:
        assert {(target / name).read_text() for name in "abc"} == {"first"}
    assert os.listdir(tmp_path) == ["out"]
    assert not [name for name in os.listdir(target) if name.startswith(".surgery")]


@pytest.mark.parametrize("layout", ["exchange", "renames"])
def test_files_that_appear_at_the_last_moment(tmp_path, monkeypatch, layout):
    """Between the last look and the exchange: the exchange is taken back."""
    target = tmp_path / "out"
    put(target, "first")
    swap = staging.exchange

    def late(one: Path, other: Path) -> bool:
        (target / "mine.txt").write_text("mine")
        return layout == "exchange" and swap(one, other)

    monkeypatch.setattr("surgery.base.staging.exchange", late)
    with pytest.raises(OutputError, match=r"holds mine.txt"):
        put(target, "second")
    assert (target / "mine.txt").read_text() == "mine"
    assert {(target / name).read_text() for name in "abc"} == {"first"}
    assert os.listdir(tmp_path) == ["out"]
