"""A cache of keys and values in 8 bits beside one in float32: decoding speed and memory.

    python tests/bench/cache.py WORK [--model 4B] [--layers 4] [--contexts 1024 8192 16384]

A checkpoint of random weights in a published shape, with a few decoder layers, is built twice:
with `--kv-cache int8` and without. Each package runs in a fresh process: a prompt of as many tokens
as the context says, then `--tokens` tokens one by one. The table has tokens a second, and the
anonymous memory of the process less that of a prompt of 16 tokens: the cache and what attention
needs besides. Ratios are taken round by round; nothing else may run meanwhile. Random weights time
like trained ones and say nothing of accuracy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from make_checkpoint import MODELS, make_checkpoint
from rich.console import Console
from rich.table import Table
from runtime import GENAI, REPORT, run

FLOAT, INT8 = "float", "int8"
SHORT = 16
ANONYMOUS = 3
"""Place of anonymous memory, GB, in what a run prints."""


def main() -> None:
    """Build what is missing, run the rounds, print the table and write `cache.json`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("work", type=Path, help="folder for the checkpoint and the packages; kept")
    p.add_argument("--model", choices=MODELS, default="4B")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 16384])
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    work = args.work.resolve()
    if not (work / "checkpoint").exists():
        make_checkpoint(work / "checkpoint", args.model, layers=args.layers)
    if not (work / "raw").exists():
        words = ["export_min", "-i", str(work / "checkpoint"), "-o", str(work / "raw")]
        run([sys.executable, "-m", *words], work)
    for kind in (FLOAT, INT8):
        if not (work / kind).exists():
            words = ["surgery", "-i", str(work / "raw"), "-o", str(work / kind)]
            run([sys.executable, "-m", *words, "--kv-cache", kind], work)
    found: dict[str, dict[int, list[list[float]]]] = {FLOAT: {}, INT8: {}}
    for turn in range(args.rounds):
        for context in (SHORT, *args.contexts):
            for kind, rounds in found.items():
                words = [str(work / kind), str(context), str(args.tokens), ""]
                out = subprocess.run(
                    [sys.executable, "-c", GENAI + REPORT, *words],
                    capture_output=True, check=True, text=True,
                ).stdout  # fmt: skip
                rounds.setdefault(context, []).append(json.loads(out.splitlines()[-1]))
                print(turn, context, kind, rounds[context][-1], flush=True)
    (work / "cache.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    table = Table(title="int8 (x float)")
    for heading in ("context", "prefill, tokens/s", "decoding, tokens/s", "anonymous GB"):
        table.add_column(heading, justify="right")
    for context in args.contexts:
        cells = [f"{context:,}"]
        for place in (0, 1):
            pairs = zip(found[INT8][context], found[FLOAT][context], strict=True)
            ratio = statistics.median(ours[place] / base[place] for ours, base in pairs)
            median = statistics.median(ours[place] for ours in found[INT8][context])
            cells.append(f"{median:.1f} ({ratio:.2f})")
        grown = {
            kind: statistics.median(r[ANONYMOUS] for r in rounds[context])
            - statistics.median(r[ANONYMOUS] for r in rounds[SHORT])
            for kind, rounds in found.items()
        }
        cells.append(f"{grown[INT8]:.3f} ({grown[INT8] / grown[FLOAT]:.2f})")
        table.add_row(*cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
