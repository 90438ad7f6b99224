"""Draw a run as one HTML page: what python -m surgery --dump DIR wrote.

Where DIR holds no dump yet, the passes run first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.base.console import console
from surgery.commands.build import add_options, options
from surgery.engine.facts import Facts

FOLDER = "build/report"


def configure(p: argparse.ArgumentParser) -> None:
    """The dump, and the options of a run that makes one."""
    p.add_argument("dir", metavar="DIR", nargs="?", default=FOLDER, help=f"default: {FOLDER}")
    p.add_argument("-i", "--input", default="build/raw", help="raw export (default: %(default)s)")
    p.add_argument("--again", action="store_true", help="run even where there is a dump")
    p.add_argument(
        "--check-steps",
        action="store_true",
        help="run each step in onnxruntime and compare it with the one before",
    )
    add_options(p)


def main(args: argparse.Namespace) -> int:
    """Dump where needed, then draw."""
    from surgery.engine.runner import Watcher
    from surgery.jobs.build import operate
    from surgery.show.report import report
    from surgery.watch.check_steps import CheckSteps
    from surgery.watch.dump import RUN, Dump
    from surgery.watch.store import Weights

    folder = Path(args.dir)
    if args.again or not (folder / RUN).is_file():
        facts = Facts.load(Path(args.input), options(args))
        facts.check_unchanged()
        watchers: list[Watcher] = [Dump(folder, Weights.ZEROS)]
        operate(facts, watchers=[*watchers, CheckSteps()] if args.check_steps else watchers)
    console.print(f"wrote {report(folder)}", markup=False)
    return 0
