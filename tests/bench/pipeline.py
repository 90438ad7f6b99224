"""From checkpoint to package: time, memory and size, against `cp` and against other tools.

    python tests/bench/make_checkpoint.py ck --model 2B
    python tests/bench/pipeline.py ck --peers --optimum-cli ov/bin/optimum-cli \\
        --llama-convert llama.cpp/convert_hf_to_gguf.py --llama-python llama/bin/python

Everything runs in fresh processes, one after the other, on one machine; the ratios are what to
read. Give the machine to it: another busy process makes all of it noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from measure import Measured, measure
from peers import Peer, add_arguments, peers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


@dataclass(frozen=True)
class Row:
    tool: str
    step: str
    result: Measured
    output: int
    """Bytes on disk of what the tool has made so far."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--work", type=Path, default=Path("build/bench"))
    p.add_argument("--no-copy", action="store_true", help="cp to /dev/null, where disk is short")
    p.add_argument("--first-word", action="store_true", help="and on to an answer about a picture")
    p.add_argument("-t", "--text-precision", default="int4")
    add_arguments(p)
    args = p.parse_args()
    checkpoint, work = args.checkpoint.resolve(), args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = [*copy(checkpoint, work, args.no_copy), *ours(checkpoint, work, args)]
    notes = []
    for peer in peers(args, checkpoint, work) if args.peers else ():
        if peer.missing:
            notes.append(f"{peer.name} skipped: {peer.missing} missing")
            continue
        made = run_peer(peer, work)
        rows += made
        notes.append(f"{peer.name} makes: {peer.makes}")
        if len(made) < len(peer.steps) or made[-1].result.code:
            notes[-1] = f"{peer.name} failed in {made[-1].step}: {last_line(work, made[-1])}"
    report(rows, size(checkpoint), notes)


def copy(checkpoint: Path, work: Path, to_null: bool) -> list[Row]:
    """The yardstick: the checkpoint copied by the system, and flushed to the disk."""
    if to_null:
        script = 'for f in "$0"/*; do cat "$f" > /dev/null; done'
        return [run("cp", "to null", ["sh", "-c", script, str(checkpoint)], work, work / "copy")]
    command = ["cp", "-r", str(checkpoint), str(work / "copy")]
    rows = [run("cp", "cp", command, work, work / "copy")]
    rows.append(run("cp", "sync", ["sync"], work, work / "copy"))
    shutil.rmtree(work / "copy")
    return rows


def ours(checkpoint: Path, work: Path, args: argparse.Namespace) -> list[Row]:
    """The two commands of this project, and the first word."""
    raw, package = work / "raw", work / "package"
    export = [PYTHON, "-m", "export_min", "-i", str(checkpoint), "-o", str(raw)]
    surgery = [PYTHON, "-m", "surgery", "-i", str(raw), "-o", str(package)]
    rows = [run("ours", "export_min", export, work, raw)]
    surgery += ["-t", args.text_precision]
    rows.append(run("ours", "surgery", surgery, work, package))
    if args.first_word:
        picture = next((ROOT / "export_min" / "demo" / "images").glob("*.png"))
        chat = [PYTHON, "-m", "surgery", "chat", str(package), "--image", str(picture)]
        command = [*chat, "--max-tokens", "1", "What is this?"]
        rows.append(run("chat", "first word", command, work, package))
    for row in rows:
        if row.result.code:
            sys.exit(f"{row.step} failed: {last_line(work, row)}")
    return rows


def run_peer(peer: Peer, work: Path) -> list[Row]:
    """Its steps until one fails; the result is removed, it has been measured."""
    folder = work / peer.name
    folder.mkdir()
    rows = []
    for step, command in peer.steps.items():
        rows.append(run(peer.name, step, command, work, folder))
        if rows[-1].result.code:
            break
    for path in peer.waste:
        path.unlink(missing_ok=True)
    rows[-1] = Row(peer.name, rows[-1].step, rows[-1].result, size(folder))
    shutil.rmtree(folder)
    return rows


def run(tool: str, step: str, command: list[str], work: Path, output: Path) -> Row:
    """Measure one command, its words in a log."""
    with (work / f"{tool}-{step}.log").open("w") as log:
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        result = measure(command, cwd=ROOT, stdout=log, stderr=log, env=offline)
    print(f"{tool} {step}: {result.seconds:.1f} s", flush=True)
    return Row(tool, step, result, size(output) if output.exists() else 0)


def last_line(work: Path, row: Row) -> str:
    """The last thing that a command said, and where the rest lies."""
    log = work / f"{row.tool}-{row.step}.log"
    lines = log.read_text(errors="replace").strip().splitlines() or ["no words"]
    return f"{lines[-1]} ({log})"


def report(rows: list[Row], source: int, notes: list[str]) -> None:
    """Print every step, then each tool as a whole against ours."""
    base = rows[0].result.seconds
    table = Table(title=f"{source / 1e9:.2f} GB checkpoint, {os.cpu_count()} cores")
    for heading in ("tool", "step", "seconds", "x cp", "anonymous GB", "resident GB", "output GB"):
        table.add_column(heading, justify="left" if heading in ("tool", "step") else "right")
    for row in rows:
        r = row.result
        figures = (r.seconds, r.seconds / base, r.anonymous / 1e9, r.resident / 1e9)
        table.add_row(row.tool, row.step, *map("{:.2f}".format, (*figures, row.output / 1e9)))
    whole = Table(title="from checkpoint to result")
    for heading in ("tool", "seconds", "x ours", "anonymous GB", "x ours", "output GB"):
        whole.add_column(heading, justify="left" if heading == "tool" else "right")
    mine = total(rows, "ours")
    for tool in dict.fromkeys(row.tool for row in rows if row.tool not in ("cp", "chat")):
        seconds, anonymous = total(rows, tool)
        output = [row.output for row in rows if row.tool == tool][-1]
        ratios = (seconds / mine[0], anonymous / mine[1])
        figures = (seconds, ratios[0], anonymous / 1e9, ratios[1], output / 1e9)
        whole.add_row(tool, *map("{:.2f}".format, figures))
    console = Console(width=100)
    console.print(table)
    console.print(whole)
    for note in notes:
        console.print(note)


def total(rows: list[Row], tool: str) -> tuple[float, int]:
    """Seconds of all steps of a tool, and the largest anonymous memory of one."""
    results = [row.result for row in rows if row.tool == tool]
    return sum(r.seconds for r in results), max(r.anonymous for r in results)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
