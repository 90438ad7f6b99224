"""What each preset of `--preset` takes at the 4B shape: time and memory, in fresh processes.

    python tests/bench/presets.py WORK [--model 4B] [--layers 3]

A checkpoint of random weights with a few layers is made, exported and built with each preset. A
calibrated preset is measured with 2 layers fewer, too, so that the time of a layer can be told
from that of the rest, and the time for all published layers extrapolated; memory is that of the
run measured. Seconds of a core hardly depend on what else runs. `best` differs from `balanced` by
its budget alone and takes the calibration of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from make_checkpoint import MODELS, make_checkpoint
from measure import Measured, measure

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder to work in; what was measured stays there")
    p.add_argument("--model", choices=MODELS, default="4B")
    p.add_argument("--layers", type=int, default=3, help="decoder layers of the larger run")
    args = p.parse_args()
    work = args.work.resolve()
    results: dict[tuple[str, int], Measured] = {}
    few = max(1, args.layers - 2)
    for layers in (few, args.layers):
        raw = prepare(work, args.model, layers)
        for preset in ("fast", "balanced", "best"):
            results[preset, layers] = build(work, raw, preset, layers)
    report(results, few, args.layers, MODELS[args.model][0][1])


def prepare(work: Path, model: str, layers: int) -> Path:
    """A raw export of a checkpoint with a few layers."""
    checkpoint, raw = work / f"checkpoint-{layers}", work / f"raw-{layers}"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, model, layers=layers, vision_layers=3)
    if not raw.exists():
        words = ["export_min", "-i", str(checkpoint), "-o", str(raw)]
        run(work, f"export-{layers}", words)
    return raw


def build(work: Path, raw: Path, preset: str, layers: int) -> Measured:
    """Build with a preset; the first calibrated one starts from nothing."""
    if preset == "balanced":
        shutil.rmtree(work / "build", ignore_errors=True)
    output = work / "package"
    shutil.rmtree(output, ignore_errors=True)
    words = ["surgery", "-i", str(raw), "-o", str(output), "--preset", preset]
    return run(work, f"{preset}-{layers}", words)


def run(work: Path, name: str, words: list[str]) -> Measured:
    """A module of this project in a fresh process, in the folder of this run."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (work / f"{name}.log").open("w") as log:
        found = measure([sys.executable, "-m", *words], cwd=work, stdout=log, stderr=log,
                        env=environment)  # fmt: skip
    memory = f"{found.anonymous / 1e9:.2f} GB"
    print(f"{name}: {found.seconds:.1f} s, {found.processor:.0f} s of a core, {memory}", flush=True)
    if found.code:
        sys.exit(f"{name} failed; its words are in {work / name}.log")
    return found


def report(results: dict[tuple[str, int], Measured], few: int, many: int, published: int) -> None:
    """A row for each preset."""
    table = Table(title=f"{os.cpu_count()} cores; from a raw export to the package")
    table.add_column("preset")
    for heading in (f"{few} layers, s", f"{many} layers, s", "a layer, s", "of a core, s",
                    "anonymous GB", f"extrapolated to {published} layers, min"):  # fmt: skip
        table.add_column(heading, justify="right")
    for preset in ("fast", "balanced", "best"):
        first, second = results[preset, few], results[preset, many]
        each = (second.seconds - first.seconds) / (many - few)
        whole = first.seconds + each * (published - few)
        core = (second.processor - first.processor) / (many - few)
        memory = second.anonymous / 1e9
        figures = (first.seconds, second.seconds, each, core, memory, whole / 60)
        table.add_row(preset, *map("{:.1f}".format, figures))
    console = Console(width=100)
    console.print(table)
    console.print("best takes the calibration of balanced; alone it takes as long as balanced")


if __name__ == "__main__":
    main()
