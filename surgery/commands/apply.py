"""Take any ONNX graph, or a folder of them, through a generic recipe.

Passes act where they find something to do; outputs keep their names and, but for logits of the
last position alone in the decoder recipe, their shapes.
"""

from __future__ import annotations

import argparse

from surgery.engine.options import Options
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.targets import TARGETS
from surgery.jobs.apply import DEFAULT


def configure(p: argparse.ArgumentParser) -> None:
    """Where from, where to, which recipe, and the choices that decide what the passes do."""
    p.add_argument(
        "-i", "--input", required=True, metavar="GRAPH", help="an .onnx file or a folder"
    )
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    p.add_argument("--recipe", default="any", help=f"{', '.join(GENERIC)} (default: %(default)s)")
    p.add_argument("--force", action="store_true", help="replace an earlier output")
    p.add_argument(
        "-t",
        "--text-precision",
        "--text_precision",
        choices=("int4", "fp32", "fp16"),
        default=DEFAULT.text_precision,
        help="weights and activations (default: %(default)s)",
    )
    p.add_argument(
        "-e",
        "--execution-provider",
        "--execution_provider",
        choices=tuple(TARGETS),
        default=DEFAULT.execution_provider,
        help="default: %(default)s",
    )
    p.add_argument(
        "--max-length",
        "--max_length",
        type=int,
        default=DEFAULT.max_length,
        metavar="N",
        help="rows of rotary tables: the largest position, and one (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Apply and write."""
    from surgery.jobs.apply import apply

    choices = Options(
        text_precision=args.text_precision,
        execution_provider=args.execution_provider,
        max_length=args.max_length,
    )
    apply(args.input, args.output, args.recipe, choices, args.force)
    return 0
