"""Build a package for onnxruntime-genai from raw graphs, or run only some of the passes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from surgery.base.console import console
from surgery.base.errors import UserError
from surgery.commands.options import add_check_steps, add_options, options
from surgery.engine.runner import Watcher
from surgery.engine.selection import Selection


def configure(p: argparse.ArgumentParser) -> None:
    """Define the arguments. Each long option is also accepted with underscores."""
    p.add_argument(
        "-i",
        "--input",
        default="build/raw",
        help="directory that python -m export_min wrote (default: %(default)s)",
    )
    p.add_argument(
        "-o", "--output", help="package directory to write (default: build/PROVIDER-PRECISION)"
    )
    add_options(p)
    p.add_argument("--force", action="store_true", help="replace an earlier package")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    p.add_argument(
        "--json", action="store_true", help="print the passes and files as one JSON object"
    )
    add_selection(p)
    add_watching(p)


def add_selection(p: argparse.ArgumentParser) -> None:
    """Add the options that select passes. A run with one of them writes no package."""
    group = p.add_argument_group(
        "selecting passes",
        "A run with --only, --skip, --until or --graph writes no package. PASS is a name that "
        "--list prints.",
    )
    group.add_argument(
        "--list", action="store_true", help="print every recipe and every pass, then exit"
    )
    group.add_argument(
        "--only", type=words, default=(), metavar="PASS[,PASS]", help="run only these passes"
    )
    group.add_argument(
        "--skip", type=words, default=(), metavar="PASS[,PASS]", help="leave these passes out"
    )
    group.add_argument("--until", metavar="PASS", help="stop after this pass")
    group.add_argument(
        "--graph", metavar="GRAPH", help="run on one graph only: vision, embedding or decoder"
    )


def add_watching(p: argparse.ArgumentParser) -> None:
    """Add the options that observe the graphs between passes without changing them."""
    group = p.add_argument_group(
        "watching a run",
        "These options observe the graphs and change nothing. A run with one of them writes a "
        "package only if -o names one.",
    )
    group.add_argument(
        "--dump", metavar="DIR", help="write the graph after each pass as .txt and .onnx"
    )
    add_check_steps(group)
    group.add_argument(
        "--dump-weights",
        choices=("link", "copy", "zeros"),
        default="link",
        help="how --dump stores weights. link: symbolic links to the checkpoint. copy: one copy, "
        "so that onnxruntime can load the graphs. zeros: zeros in place of weights that the "
        "passes transformed (default: %(default)s)",
    )


def words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    return tuple(word for word in text.replace(" ", "").split(",") if word)


def selection(args: argparse.Namespace) -> Selection:
    """Return the selected passes and graphs.

    Raises:
        UserError: there is no pass or graph of that name.
    """
    return Selection(args.only, args.skip, args.until, args.graph)


def watchers(args: argparse.Namespace) -> list[Watcher]:
    """Return the requested watchers. The dump comes first, so that it holds a failing step too."""
    from surgery.watch.check_steps import CheckSteps
    from surgery.watch.dump import Dump
    from surgery.watch.store import Weights

    chosen: list[Watcher] = []
    if args.dump:
        chosen.append(Dump(Path(args.dump), Weights(args.dump_weights)))
    if args.check_steps:
        chosen.append(CheckSteps())
    return chosen


def main(args: argparse.Namespace) -> int:
    """Build the package, or run the selected passes.

    `--quiet` silences the console of the whole process until the command ends.
    """
    if args.list:
        from surgery.show.table import plain

        print(plain())
        return 0
    console.quiet = args.quiet
    try:
        result = work(args)
    finally:
        console.quiet = False
    if args.json:
        print(json.dumps(result, indent=2))
    return 0


def work(args: argparse.Namespace) -> dict[str, object]:
    """Do the work of `main`; return the object that `--json` prints."""
    from surgery.engine.facts import Facts
    from surgery.jobs import build as job
    from surgery.watch.results import Results

    results = Results()
    chosen = selection(args)
    observed = watchers(args)
    if chosen.whole and (args.output is not None or not observed):
        results.output = job.build(
            args.input, args.output, options(args), args.force, observed, results.tell
        )
        return results.summary()
    if args.output is not None:
        raise UserError(
            "-o: a run with --only, --skip, --until or --graph writes no package. "
            "Leave -o out; use --dump DIR to keep the graphs."
        )
    facts = Facts.load(Path(args.input), options(args))
    facts.check_unchanged()
    if "decoder" in chosen.graphs:
        facts = job.planned(facts)
    job.operate(facts, chosen, observed, results.tell)
    results.remark(chosen)
    return results.summary()
