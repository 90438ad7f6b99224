"""Command-line arguments that several commands share, each defined once.

The arguments that set a field of `Options` store their value under the name of that field, so
that `options` can build an `Options` from whichever of them a command defines.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from surgery.engine.options import DTYPES, Options
from surgery.engine.targets import TARGETS

DEFAULTS = Options()


def add_options(p: argparse.ArgumentParser) -> None:
    """Add an argument for every field of `Options`."""
    p.add_argument(
        "-p",
        "--precision",
        choices=tuple(DTYPES),
        default=DEFAULTS.precision,
        help="precision of the vision and embedding graphs (default: %(default)s)",
    )
    add_text_precision(p, DEFAULTS, "precision of the decoder graph")
    add_execution_provider(p, DEFAULTS)
    p.add_argument(
        "--image-size",
        "--image_size",
        type=int,
        metavar="N",
        help="build the vision graph for square pictures of N x N pixels only "
        "(default: pictures of any size)",
    )
    add_max_length(p, DEFAULTS, "context length in tokens: the number of rows of the rotary table")
    p.add_argument(
        "--block-size",
        "--block_size",
        type=int,
        choices=(16, 32, 64, 128, 256),
        default=DEFAULTS.block_size,
        help="number of quantized weights that share one scale (default: %(default)s)",
    )
    p.add_argument(
        "--head-bits",
        "--head_bits",
        type=int,
        choices=(4, 8),
        default=DEFAULTS.head_bits,
        help="bits of a quantized weight in the output head, and in the embedding table if it is "
        "tied to the head (default: %(default)s)",
    )
    p.add_argument(
        "--hidden-states",
        "--hidden_states",
        action="store_true",
        help="add the last hidden states to the outputs of the decoder, for embedding models and "
        "rerankers",
    )
    p.add_argument(
        "--strip",
        action="store_true",
        help="remove module paths and doc strings from the nodes of the package",
    )
    p.add_argument(
        "--asymmetric",
        dest="symmetric",
        action="store_false",
        help="quantize with a zero point for each block",
    )


def add_text_precision(p: argparse.ArgumentParser, defaults: Options, what: str) -> None:
    """Add the precision of the decoder, or of a graph of another exporter.

    Args:
        p: the parser.
        defaults: where the default comes from.
        what: what the precision is of, for the help text.
    """
    p.add_argument(
        "-t",
        "--text-precision",
        "--text_precision",
        choices=("int4", *DTYPES),
        default=defaults.text_precision,
        help=f"{what} (default: %(default)s)",
    )


def add_execution_provider(p: argparse.ArgumentParser, defaults: Options) -> None:
    """Add the execution provider, with the default of `defaults`."""
    p.add_argument(
        "-e",
        "--execution-provider",
        "--execution_provider",
        choices=tuple(TARGETS),
        default=defaults.execution_provider,
        help="onnxruntime execution provider that will run the graphs (default: %(default)s)",
    )


def add_max_length(p: argparse.ArgumentParser, defaults: Options, what: str) -> None:
    """Add the length of the rotary tables.

    Args:
        p: the parser.
        defaults: where the default comes from.
        what: what the length means to this command, for the help text.
    """
    p.add_argument(
        "--max-length",
        "--max_length",
        type=int,
        default=defaults.max_length,
        metavar="N",
        help=f"{what} (default: %(default)s)",
    )


def add_check_steps(p: argparse._ActionsContainer) -> None:
    """Add the option that checks every pass in onnxruntime."""
    p.add_argument(
        "--check-steps",
        action="store_true",
        help="after each pass, run the graph in onnxruntime and compare its outputs with those "
        "of the graph before the pass",
    )


def options(args: argparse.Namespace, defaults: Options = DEFAULTS) -> Options:
    """Build `Options` from parsed arguments.

    Args:
        args: parsed arguments.
        defaults: values of the fields that the command has no argument for.

    Raises:
        UserError: a value that no run can use.
    """
    given = {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)}
    return replace(defaults, **given)
