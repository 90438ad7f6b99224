"""Two processes that trace: each ends at once when the other one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys, time
import export_min
def never(*_):
    while True:
        time.sleep(0.01)
export_min.write_graphs = never
export_min.os.cpu_count = lambda: 2
from export_min.__main__ import main
sys.exit(main(["-o", sys.argv[1]]))
"""
"""An export whose own half never ends; the other process works as always."""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
@pytest.mark.parametrize("who", ["child", "parent"])
def test_killed(tmp_path, who):
    words = [sys.executable, "-c", SLOW, str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as parent:
        child = wait_for(lambda: child_of(parent.pid))
        os.kill(child if who == "child" else parent.pid, signal.SIGKILL)
        _, err = parent.communicate(timeout=60)
    wait_for(lambda: not Path(f"/proc/{child}").exists())
    if who == "child":
        assert parent.returncode == 2 and len(err.splitlines()) == 1
        assert "tracing vision, embedding was ended by SIGKILL" in err
        assert not any(tmp_path.iterdir())


def child_of(pid: int) -> int:
    """The process that a process started, once it runs its own program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        if b"export_min.aside" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return 0


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
