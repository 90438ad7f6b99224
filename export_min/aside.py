"""Trace some of the graphs in a second process while this process traces the others.

Tracing is Python code that uses one core, and the graphs are independent of each other. The second
process is a subprocess: multiprocessing could run the script or notebook that calls `export` a
second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from export_min.checkpoint import Checkpoint

UNWRITTEN = 3
"""Exit code for an `OSError`. The last line of standard error is its errno and text as JSON."""


@contextlib.contextmanager
def meanwhile(source: Checkpoint, stage: Path, names: Sequence[str]) -> Iterator[None]:
    """Trace the graphs `names` into `stage` while the block runs, and wait for them at its end.

    Raises:
        OSError: the other process could not write.
        RuntimeError: the other process failed for another reason.
    """
    command = [sys.executable, "-m", "export_min.aside", str(source.path), str(stage), *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            yield
            said = child.communicate()[1]
        finally:
            child.kill()
    if child.returncode == UNWRITTEN:
        raise OSError(*json.loads(said.splitlines()[-1]))
    if child.returncode:
        raise RuntimeError(f"tracing {', '.join(names)} failed:\n{said}")


def main(path: str, stage: str, *names: str) -> int:
    """Trace the graphs `names` of the checkpoint at `path` into `stage`; return the exit code."""
    from export_min import write_graphs

    try:
        write_graphs(Checkpoint(Path(path), path), Path(stage), names)
    except OSError as e:
        print(json.dumps([e.errno, e.strerror]), file=sys.stderr)
        return UNWRITTEN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
