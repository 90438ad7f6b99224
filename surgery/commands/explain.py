"""Show where a pass acts, where it nearly did, and the first condition that failed there.

The pass is asked on the graph as it stands right before it in the recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.commands.build import add_options, options
from surgery.facts import Facts


def configure(p: argparse.ArgumentParser) -> None:
    """The pass, the graph, the module, and the options of the run that it is part of."""
    p.add_argument("name", metavar="PASS", help="see python -m surgery --list")
    p.add_argument("-i", "--input", default="build/raw", help="raw export (default: %(default)s)")
    p.add_argument("--graph", metavar="GRAPH", help="vision, embedding or decoder alone")
    p.add_argument("--at", metavar="MODULE", help="modules whose path contains this")
    p.add_argument("--all", action="store_true", help="every site and near-miss")
    add_options(p)


def main(args: argparse.Namespace) -> int:
    """Print sites and near-misses."""
    from surgery.inspect.near import explain, lines

    facts = Facts.load(Path(args.input), options(args))
    limit = 1 << 30 if args.all else 12
    for explanation in explain(args.name, facts, args.graph):
        print("\n".join(lines(explanation, args.at, limit)))
    return 0
