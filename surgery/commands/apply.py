"""Run a generic recipe on any ONNX graph, or on every graph in a folder.

A pass changes a graph only where its pattern matches. Outputs keep their names. They also keep
their shapes, with one exception: the decoder recipe computes logits for the last position only.
With the model's own config.json it also writes what onnxruntime-genai needs to run the decoder.
"""

from __future__ import annotations

import argparse

from surgery.commands.options import (
    add_execution_provider,
    add_formats,
    add_max_length,
    add_prefill,
    add_text_precision,
    options,
)
from surgery.engine.options import PRESETS
from surgery.engine.recipes.generic import GENERIC
from surgery.jobs.apply import DEFAULT


def configure(p: argparse.ArgumentParser) -> None:
    """Define the input, the output, the recipe, and the options that apply to any graph."""
    p.add_argument(
        "-i",
        "--input",
        required=True,
        metavar="GRAPH",
        help="an .onnx file, or a folder of .onnx files",
    )
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    p.add_argument(
        "--recipe", default="any", help=f"one of {', '.join(GENERIC)} (default: %(default)s)"
    )
    p.add_argument(
        "--config",
        metavar="DIR",
        help="with --recipe decoder: folder of the model's config.json and tokenizer, for a "
        "package that onnxruntime-genai runs (default: that of the graph, if config.json is there)",
    )
    p.add_argument("--force", action="store_true", help="replace an earlier output")
    add_text_precision(p, DEFAULT, "precision of weights and activations")
    add_execution_provider(p, DEFAULT)
    add_max_length(p, DEFAULT, "number of rows of the rotary tables: the largest position plus 1")
    group = p.add_argument_group("quantization", "With -t int4.")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=DEFAULT.preset,
        help="fast: rounding to nearest. balanced: calibrated on --calibrate. best: the same with "
        "more bits (default: %(default)s)",
    )
    group.add_argument(
        "--calibrate",
        metavar="FILE",
        help="example inputs of the graph, with --preset balanced or best: a .npz of arrays by the "
        "names of inputs, one example after the other on the first axis, or a folder of such "
        "files; empty caches may be left out",
    )
    add_formats(group, DEFAULT)
    add_prefill(group)


def main(args: argparse.Namespace) -> int:
    """Run the recipe and write the graphs."""
    from surgery.jobs.apply import apply

    apply(
        args.input, args.output, args.recipe, options(args, DEFAULT), args.force, config=args.config
    )
    return 0
