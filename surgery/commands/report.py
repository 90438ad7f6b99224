"""Draw a run as one HTML page, from the files that python -m surgery --dump DIR wrote.

If DIR holds no dump yet, the command runs the passes and writes one first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.base.console import announce
from surgery.commands.options import add_check_steps, add_options, options
from surgery.engine.facts import Facts

FOLDER = "build/report"


def configure(p: argparse.ArgumentParser) -> None:
    """Define the directory of the dump, and the options of the run that writes it."""
    p.add_argument(
        "dir",
        metavar="DIR",
        nargs="?",
        default=FOLDER,
        help=f"directory of the dump and of the page (default: {FOLDER})",
    )
    p.add_argument(
        "-i",
        "--input",
        default="build/raw",
        help="directory that python -m export_min wrote (default: %(default)s)",
    )
    p.add_argument(
        "--again", action="store_true", help="run the passes again even if DIR holds a dump"
    )
    add_check_steps(p)
    add_options(p)


def main(args: argparse.Namespace) -> int:
    """Write the dump if it is needed, then draw the page."""
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
    announce(f"wrote {report(folder)}")
    return 0
