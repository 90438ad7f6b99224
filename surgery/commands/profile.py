"""Show where the time of an answer goes, by op type: the picture, the prompt, each further token.

onnxruntime's profiler measures the nodes of one answer on the CPU, as the package is run by
onnxruntime-genai. Its first run counts, so that memory is still being reserved.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.base.console import announce
from surgery.base.demo import DEMO
from surgery.base.errors import OutputError, UserError

if TYPE_CHECKING:
    from surgery.answer.profiling import Profile

PICTURE = DEMO / "images" / "shapes.png"
QUESTION = "where is the green rectangle?"
ROWS = 12
"""Op types that the table shows by name."""


def configure(p: argparse.ArgumentParser) -> None:
    """Define the package and what it is asked."""
    p.add_argument("package", metavar="DIR", help="package directory")
    p.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        default=QUESTION,
        help=f"the question (default: {QUESTION})",  # argparse has no %(default)s of a word here
    )
    p.add_argument("--image", metavar="PATH", help="picture (default: one of the demo's)")
    p.add_argument(
        "--tokens", type=int, default=32, metavar="N", help="of the answer (default: %(default)s)"
    )
    p.add_argument("--json", metavar="OUT", help="also write all figures to a file")


def main(args: argparse.Namespace) -> int:
    """Ask once, then print the table."""
    from surgery.answer.profiling import profile
    from surgery.base.pictures import open_picture

    if args.tokens < 1:
        raise UserError(f"--tokens is {args.tokens}, must be 1 or more.")
    picture = open_picture(args.image or PICTURE)
    found = profile(Path(args.package), args.prompt, [picture], args.tokens)
    show(found)
    if args.json:
        save(args, found)
    return 0


def show(found: Profile) -> None:
    """Print shares of the time and calls as a table on stdout, the time of all nodes last."""
    from rich.console import Console
    from rich.table import Table

    from surgery.answer.profiling import PHASES

    table = Table("op type", box=None, pad_edge=False)
    for phase in PHASES:
        table.add_column(phase, justify="right")
        table.add_column("calls", justify="right")
    names, total = list(found.ops), {phase: found.seconds(phase) for phase in PHASES}
    rest = names[ROWS:]
    for row in [*([name] for name in names[:ROWS]), *([rest] if rest else [])]:
        cells = []
        for phase in PHASES:
            shares = [found.ops[op][phase] for op in row if phase in found.ops[op]]
            spent = sum(share.seconds for share in shares)
            cells.append(f"{spent / total[phase]:.1%}" if shares and total[phase] else "")
            cells.append(f"{sum(share.calls for share in shares):,}" if shares else "")
        table.add_row(row[0] if len(row) == 1 else f"{len(row)} others", *cells)
    times = [cell for phase in PHASES for cell in (f"{1e3 * total[phase]:,.1f} ms", "")]
    table.add_row("all", *times, style="bold")
    console = Console(highlight=False)
    console.print(table)
    asked, answered = found.tokens
    console.print(f"{asked:,} tokens in, {answered:,} out")


def save(args: argparse.Namespace, found: Profile) -> None:
    """Write all figures as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    from surgery.answer.profiling import PHASES

    asked, answered = found.tokens
    value = {
        "package": args.package,
        "prompt_tokens": asked,
        "answer_tokens": answered,
        "seconds": {phase: found.seconds(phase) for phase in PHASES},
        "ops": {op: {n: asdict(s) for n, s in found.ops[op].items()} for op in found.ops},
    }
    try:
        Path(args.json).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{args.json}: cannot be written: {e.strerror}.") from e
    announce(f"wrote {args.json}")
