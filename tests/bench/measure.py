"""Wall time and peak anonymous memory of a command, its children included.

Anonymous memory (`RssAnon` in /proc/PID/status) is what a process needs for itself; resident
memory also counts pages of mapped files, which the kernel may drop at any time.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02
"""Seconds between two looks."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    anonymous: int
    """Peak bytes over all processes of the command."""
    resident: int
    code: int
    processor: float
    """Seconds of all cores, of every process of the command that ended in it."""


def measure(command: Sequence[str], **options: object) -> Measured:
    """Run a command to its end and watch it."""
    start, before = time.perf_counter(), spent()
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    anonymous = resident = 0
    while process.poll() is None:
        found = [memory(pid) for pid in family(process.pid)]
        anonymous = max(anonymous, sum(a for a, _ in found))
        resident = max(resident, sum(r for _, r in found))
        time.sleep(INTERVAL)
    seconds = time.perf_counter() - start
    return Measured(seconds, anonymous, resident, process.returncode, spent() - before)


def spent() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and its descendants that run a program of their own.

    Between `vfork` and `exec` a child has the memory of its parent, which would be counted twice;
    it still has its parent's command line.
    """
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    begun = [int(child) for child in children if program(int(child)) != program(pid)]
    return [pid, *(deep for child in begun for deep in family(child))]


def program(pid: int) -> bytes:
    """The command line of a process, empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def memory(pid: int) -> tuple[int, int]:
    """Anonymous and resident bytes, 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return tuple(int(fields.get(k, "0 kB").split()[0]) * 1024 for k in ("RssAnon", "VmRSS"))  # type: ignore[return-value]
