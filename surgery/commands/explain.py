"""Show where a pass acts, where it nearly did, and the first condition that failed there.

The pass is asked on the graph as it stands right before it in the recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.commands.build import add_options, options
from surgery.engine.facts import Facts


def configure(p: argparse.ArgumentParser) -> None:
    """The pass, the graph, the module, and the options of the run that it is part of."""
    p.add_argument("name", metavar="PASS", help="see python -m surgery --list")
    p.add_argument(
        "-i",
        "--input",
        default="build/raw",
        help="raw export, or an .onnx file of any exporter (default: %(default)s)",
    )
    p.add_argument("--graph", metavar="GRAPH", help="vision, embedding or decoder alone")
    p.add_argument(
        "--recipe", help="decoder, vision or any: a generic recipe (default for an .onnx file: any)"
    )
    p.add_argument("--at", metavar="MODULE", help="modules whose path contains this")
    p.add_argument("--all", action="store_true", help="every site and near-miss")
    add_options(p)


def main(args: argparse.Namespace) -> int:
    """Print sites and near-misses."""
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
        print("\n".join(lines(explanation, args.at, limit)))
    return 0
