"""From checkpoint to package: time, memory and size, against `cp` and against other tools.

    python tests/bench/make_checkpoint.py ck --model 2B
    python tests/bench/pipeline.py ck --builder

Everything runs in fresh processes, one after the other, on one machine; the ratios are what to
read. Give the machine to it: another busy process makes all of it noise.
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
from measure import Measured, measure

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--work", type=Path, default=Path("build/bench"))
    p.add_argument("--builder", action="store_true", help="onnxruntime-genai's builder as well")
    p.add_argument("--first-word", action="store_true", help="and on to an answer about a picture")
    p.add_argument("-t", "--text-precision", default="int4")
    args = p.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    copy, raw, package = (args.work / name for name in ("copy", "raw", "package"))
    rows: list[tuple[str, Measured, Path]] = []

    def run(name: str, command: list[str], output: Path) -> None:
        with (args.work / f"{name}.log").open("w") as log:
            result = measure(command, cwd=ROOT, stderr=log)
        if result.code:
            sys.exit(f"{name} failed: see {args.work / f'{name}.log'}")
        rows.append((name, result, output))

    absolute = [str(path.resolve()) for path in (args.checkpoint, copy, raw, package)]
    run("cp", ["cp", "-r", absolute[0], absolute[1]], copy)
    run("sync", ["sync"], copy)
    export = [PYTHON, "-m", "export_min", "-i", absolute[0], "-o", absolute[2]]
    surgery = [PYTHON, "-m", "surgery", "-i", absolute[2], "-o", absolute[3]]
    run("export_min", export, raw)
    run("surgery", [*surgery, "-t", args.text_precision], package)
    if args.first_word:
        picture = next((ROOT / "export_min" / "demo" / "images").glob("*.png"))
        chat = [PYTHON, "-m", "surgery", "chat", absolute[3], "--image", str(picture)]
        run("first word", [*chat, "--max-tokens", "1", "What is this?"], package)
    shutil.rmtree(copy)
    if args.builder:
        built = args.work / "builder"
        command = [PYTHON, "-m", "onnxruntime_genai.models.builder", "-i", absolute[0]]
        command += ["-o", str(built.resolve()), "-p", "int4", "-e", "cpu", "-c", "/nonexistent"]
        run("builder", [*command, "--extra_options", "exclude_embeds=true"], built)
    report(rows, size(args.checkpoint))


def report(rows: list[tuple[str, Measured, Path]], source: int) -> None:
    """Print the table: seconds, ratio to `cp`, memory, output."""
    base = rows[0][1].seconds
    table = Table(title=f"{source / 1e9:.2f} GB checkpoint, {os.cpu_count()} cores")
    for heading in ("step", "seconds", "x cp", "anonymous GB", "resident GB", "output GB"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for name, result, output in rows:
        table.add_row(
            name,
            f"{result.seconds:.1f}",
            f"{result.seconds / base:.2f}",
            f"{result.anonymous / 1e9:.2f}",
            f"{result.resident / 1e9:.2f}",
            f"{size(output) / 1e9:.2f}" if output.exists() else "",
        )
    Console(width=100).print(table)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
