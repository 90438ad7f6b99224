"""Load time and memory of a package's graphs, under several session options.

    python tests/bench/load.py build/cpu-int4

Each line is a fresh process. `anonymous` is memory that the session needs for itself; weights
mapped from the data file are not in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

CHILD = """
import sys, time, json
import onnxruntime as ort
path, entries = sys.argv[1], json.loads(sys.argv[2])
options = ort.SessionOptions()
options.log_severity_level = 3
options.enable_cpu_mem_arena = entries.pop("arena", True)
for key, value in entries.items():
    options.add_session_config_entry(key, value)
def memory(field):
    found = next(l for l in open("/proc/self/status") if l.startswith(field))
    return int(found.split()[1]) * 1024 / 1e9
before = memory("RssAnon")
start = time.perf_counter()
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
print(json.dumps([seconds, memory("RssAnon") - before, memory("VmRSS"), memory("VmHWM")]))
"""

SETTINGS = {
    "default": {},
    "no arena": {"arena": False},
    "device allocator for weights": {"session.use_device_allocator_for_initializers": "1"},
    "no prepacking": {"session.disable_prepacking": "1"},
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("package", type=Path)
    args = p.parse_args()
    table = Table()
    for heading in ("graph", "options", "file GB", "load s", "anonymous GB", "x file", "peak GB"):
        table.add_column(heading)
    for path in sorted(args.package.glob("*.onnx")):
        data = path.with_name(f"{path.name}.data")
        size = (data.stat().st_size if data.exists() else 0) / 1e9
        for name, entries in SETTINGS.items():
            seconds, anonymous, _, peak = child(path, entries)
            ratio = f"{anonymous / size:.2f}" if size else ""
            figures = (f"{size:.2f}", f"{seconds:.2f}", f"{anonymous:.2f}", ratio, f"{peak:.2f}")
            table.add_row(path.name, name, *figures)
    Console(width=110).print(table)


def child(path: Path, entries: dict[str, object]) -> list[float]:
    """Load in a fresh process."""
    import json

    command = [sys.executable, "-c", CHILD, str(path), json.dumps(entries)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out)


if __name__ == "__main__":
    main()
