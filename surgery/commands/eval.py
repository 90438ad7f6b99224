"""Measure a package's answers on a set of questions, side by side with PyTorch if asked.

An answer is right when it is the expected one word for word (case, surrounding space and a final
full stop aside); a box, when it overlaps the expected one by half. agreement: share of questions
on which package and PyTorch say the same, token for token. KL: mean KL(PyTorch || package) of the
next token along PyTorch's answers, in nats.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.base.console import announce, progress
from surgery.base.demo import QUESTIONS
from surgery.base.errors import OutputError, UserError
from surgery.commands.chat import add_frames
from surgery.commands.verify import add_checkpoint

if TYPE_CHECKING:
    from surgery.answer.evaluation import Verdict

COLUMNS = {"package": "package", "pytorch": "PyTorch", "agreement": "agreement", "kl": "KL"}


def configure(p: argparse.ArgumentParser) -> None:
    """The package, the questions, what to compare with."""
    p.add_argument("package", metavar="DIR", help="a package")
    add_checkpoint(p, "--against", "ask PyTorch the same")
    p.add_argument(
        "--questions",
        metavar="FILE",
        help='JSON lines {"image": path, "question": text, "answer": text, "kind": text}; image '
        "(or a list, relative to the file) and kind may be left out; video names videos as image "
        "names pictures (default: the demo's)",
    )
    add_frames(p)
    p.add_argument("--limit", type=int, metavar="N", help="ask N, evenly spread over the file")
    p.add_argument(
        "--max-tokens",
        "--max_tokens",
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="longest answer (default: %(default)s)",
    )
    p.add_argument("--json", metavar="OUT", help="also write figures and answers to a file")
    p.add_argument(
        "--card",
        action="store_true",
        help="also write the figures, and the first question about one picture with this picture "
        "and the package's answer, into the package's README",
    )


def main(args: argparse.Namespace) -> int:
    """Ask, then print the table."""
    from surgery.answer.evaluation import evaluate, summarize
    from surgery.answer.pytorch import PyTorch
    from surgery.answer.questions import read_questions
    from surgery.answer.runtime import Runtime
    from surgery.base.videos import check_sampling
    from surgery.jobs.measured_card import read_card, write_measured

    for name in ("limit", "max_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(
                f"{name.replace('_', '-')} is {getattr(args, name)}, must be 1 or more."
            )
    check_sampling(args.fps, args.max_frames)
    path = Path(args.questions) if args.questions else QUESTIONS
    questions = read_questions(path, args.limit)
    if args.against is not None and any(question.videos for question in questions):
        raise UserError(
            f"{path}: asks about videos, --against compares pictures and text only. Leave out "
            f"--against, or those lines."
        )
    if args.card:
        read_card(Path(args.package))  # not after an hour of questions
    runtime = Runtime(args.package)
    with contextlib.ExitStack() as stack:
        pytorch = None
        if args.against is not None:
            running = PyTorch.running(args.against, args.cache_dir, args.revision)
            pytorch = stack.enter_context(running)
        bar = stack.enter_context(progress())
        task = bar.add_task("questions", total=len(questions))
        verdicts = evaluate(
            runtime,
            questions,
            pytorch,
            args.max_tokens,
            lambda done: bar.update(task, completed=done),
            (args.fps, args.max_frames),
        )
    summary = summarize(verdicts)
    show(summary)
    if args.json:
        save(args, path, summary, verdicts)
    if args.card:
        write_measured(args.package, summary, verdicts, path.name)
    return 0


def show(summary: dict[str, dict[str, float]]) -> None:
    """Print the figures as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    columns = [name for name in COLUMNS if name in summary["all"]]
    table = Table("kind", box=None, pad_edge=False)
    for name in ("questions", *(COLUMNS[name] for name in columns)):
        table.add_column(name, justify="right")
    for kind, row in summary.items():
        cells = [f"{row[n]:.1e}" if n == "kl" else f"{row[n]:.1%}" for n in columns]
        table.add_row(kind, f"{row['count']:,}", *cells, style="bold" if kind == "all" else None)
    Console(highlight=False).print(table)


def save(
    args: argparse.Namespace,
    questions: Path,
    summary: dict[str, dict[str, float]],
    verdicts: Sequence[Verdict],
) -> None:
    """Write figures and answers as JSON."""
    value: dict[str, Any] = {
        "package": args.package,
        "against": args.against,
        "questions": str(questions),
        "kinds": summary,
        "answers": [verdict.record() for verdict in verdicts],
    }
    try:
        Path(args.json).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{args.json}: cannot be written: {e.strerror}.") from e
    announce(f"wrote {args.json}")
