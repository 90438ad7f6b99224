"""Show where a pass matches, where it nearly matches, and the first condition that fails there.

The recipe runs up to the pass, so that the pass sees the graph that it would see in a full run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.base.errors import visible
from surgery.commands.options import add_options, options
from surgery.engine.facts import Facts


def configure(p: argparse.ArgumentParser) -> None:
    """Define the pass, the graph, the module, and the options of the run."""
    p.add_argument("name", metavar="PASS", help="a name that python -m surgery --list prints")
    p.add_argument(
        "-i",
        "--input",
        default="build/raw",
        help="directory that python -m export_min wrote, or an .onnx file of any exporter "
        "(default: %(default)s)",
    )
    p.add_argument(
        "--graph", metavar="GRAPH", help="look at one graph only, such as vision or decoder"
    )
    p.add_argument(
        "--recipe",
        help="use this generic recipe: decoder, vision or any (default for an .onnx file: any)",
    )
    p.add_argument("--at", metavar="MODULE", help="show only modules whose path contains this text")
    p.add_argument(
        "--all", action="store_true", help="show every site and near-miss, not only the first 12"
    )
    add_options(p)


def main(args: argparse.Namespace) -> int:
    """Print the sites and near-misses."""
    from surgery.watch.explain import explain, explain_foreign, lines

    source, limit = Path(args.input), 1 << 30 if args.all else 12
    if args.recipe is not None or source.suffix == ".onnx":
        recipe = args.recipe or "any"
        found = explain_foreign(args.name, source, recipe, options(args), args.graph)
    else:
        facts = Facts.load(source, options(args))
        facts.check_unchanged()
        found = explain(args.name, facts, args.graph)
    for explanation in found:
        for line in lines(explanation, args.at, limit):
            print(visible(line))
    return 0
