"""Trace some of the graphs in a second process while this process traces the others.

Tracing is Python code that uses one core, and the graphs are independent of each other. The second
process is a subprocess: multiprocessing could run the script or notebook that calls `export` a
second time. Each of the two ends at once when the other one fails or is killed.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from export_min.checkpoint import Checkpoint
from surgery.base.errors import UserError
from surgery.base.processes import ending

FAILED = 3
"""Exit code for an error that the last line of standard error holds as JSON."""


@contextlib.contextmanager
def meanwhile(source: Checkpoint, stage: Path, names: Sequence[str]) -> Iterator[None]:
    """Trace the graphs `names` into `stage` while the block runs, and wait for them at its end.

    In the main thread, a failure of the other process interrupts the block.

    Raises:
        OSError: the other process could not read or write a file.
        UserError: the checkpoint cannot be used, or the other process ended unexpectedly.
    """
    command = [sys.executable, "-m", "export_min.aside", str(source.path), str(stage), *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C comes to this process alone, which ends that one
    ) as child:
        watch = Watch(child)
        try:
            try:
                yield
            finally:
                watch.over()  # from here on no failure interrupts anything
            watch.thread.join()
        except BaseException as e:
            if watch.failed:
                raise failure(child, watch.said, names) from e
            raise
        finally:
            child.kill()
            watch.thread.join()
        if child.returncode:
            raise failure(child, watch.said, names)


class Watch:
    """Reads what a process says until it ends, then interrupts the main thread if it failed."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        """Start to watch a process."""
        self.child, self.said, self.failed, self.busy = child, "", False, True
        self.apart = threading.current_thread() is not threading.main_thread()
        self.lock = threading.Lock()
        assert child.stderr is not None
        self.thread = threading.Thread(target=self.read, args=(child.stderr,), daemon=True)
        self.thread.start()

    def read(self, stream: IO[str]) -> None:
        """Read, wait, interrupt."""
        self.said = stream.read()
        code = self.child.wait()
        with self.lock:
            if code and self.busy:
                self.failed = True
                if not self.apart:
                    _thread.interrupt_main()

    def over(self) -> None:
        """Interrupt nothing any more."""
        with self.lock:
            self.busy = False


def failure(child: subprocess.Popen[str], said: str, names: Sequence[str]) -> Exception:
    """What went wrong in the other process."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    if child.returncode != FAILED:
        what = f"tracing {', '.join(names)} {ending(child.returncode)}: {lines[-1]}"
        return UserError(what)
    error = json.loads(lines[-1])
    return UserError(error) if isinstance(error, str) else OSError(*error)


def main(path: str, stage: str, *names: str) -> int:
    """Trace the graphs `names` of the checkpoint at `path` into `stage`; return the exit code."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    from export_min import write_graphs

    try:
        write_graphs(Checkpoint(Path(path), path), Path(stage), names)
    except OSError as e:
        print("\n", json.dumps([e.errno, e.strerror, e.filename]), file=sys.stderr)
        return FAILED
    except UserError as e:
        print("\n", json.dumps(str(e)), file=sys.stderr)
        return FAILED
    return 0


def end_with_parent() -> None:
    """End the process when its standard input closes, which is when the parent ends."""
    os.read(0, 1)  # not sys.stdin, whose lock the interpreter's end would wait for
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
