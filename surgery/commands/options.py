"""Command-line arguments that several commands share, each defined once.

The arguments that set a field of `Options` store their value under the name of that field, so
that `options` can build an `Options` from whichever of them a command defines.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from surgery.engine.options import (
    AUTO,
    CACHES,
    DTYPES,
    PRECISIONS,
    PREFILLS,
    PRESETS,
    RUNTIMES,
    Options,
)
from surgery.engine.targets import TARGETS

DEFAULTS = Options()


def add_options(p: argparse.ArgumentParser) -> None:
    """Add an argument for every field of `Options`."""
    p.add_argument(
        "-p",
        "--precision",
        choices=(*PRECISIONS, AUTO),
        default=AUTO,
        help="precision of the vision and embedding graphs. int8: products of the vision tower in "
        "8 bits, the rest in float32. auto: int8 beside an INT4 decoder on a CPU, otherwise fp32 "
        "(default: %(default)s)",
    )
    add_text_precision(p, DEFAULTS, "precision of the decoder graph")
    add_execution_provider(p, DEFAULTS)
    p.add_argument(
        "--for",
        dest="runtime",
        choices=RUNTIMES,
        default=DEFAULTS.runtime,
        help="the program that runs the package; surgery/docs/transformers_js.md describes the "
        "one for browsers and Node (default: %(default)s)",
    )
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
        "--head-bits",
        "--head_bits",
        type=int,
        choices=(4, 8),
        default=DEFAULTS.head_bits,
        help="bits of a quantized weight in the output head, and in the embedding table if it is "
        "tied to the head (default: %(default)s)",
    )
    p.add_argument(
        "--kv-cache",
        "--kv_cache",
        choices=CACHES,
        default=DEFAULTS.kv_cache,
        help="how past keys and values are stored; int8 takes a quarter of the memory, and needs "
        "their ranges, which are measured before the build (default: %(default)s)",
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
    add_quantization(p, DEFAULTS)


def add_quantization(p: argparse.ArgumentParser, defaults: Options) -> None:
    """Add the choices of how INT4 weights are quantized."""
    group = p.add_argument_group("quantization", "With -t int4; the head has --head-bits.")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=defaults.preset,
        help="fast: rounding to nearest, in seconds. balanced: calibrated on tokens that the model "
        "itself samples, at the same size. best: the same with more bits (default: %(default)s)",
    )
    group.add_argument(
        "--calibrate",
        metavar="FILE",
        help="calibrate on your own examples instead of sampled tokens, with --preset balanced or "
        'best: JSON lines {"text": text} or {"image": path, "question": text, "answer": text}; '
        "image (or a list, relative to the file) and answer may be left out",
    )
    add_formats(group, defaults)
    add_prefill(group)


def add_formats(group: argparse._ActionsContainer, defaults: Options) -> None:
    """Add the choices of formats, which need no calibration."""
    group.add_argument(
        "--bits",
        type=float,
        metavar="B",
        help="average bits of a weight of the decoder layers, scales and zero points included; "
        "weights that matter most get 8 bits (default: that of the preset)",
    )
    group.add_argument(
        "--keep", metavar="REGEX", help="leave weights whose name matches unquantized"
    )
    group.add_argument(
        "--block-size",
        "--block_size",
        type=int,
        choices=(16, 32, 64, 128, 256),
        default=defaults.block_size,
        help="largest number of 4-bit weights that share one scale (default: %(default)s)",
    )
    group.add_argument(
        "--symmetric", action="store_true", help="quantize 4-bit weights without zero points"
    )
    group.add_argument(
        "--shortlist",
        type=int,
        metavar="N",
        default=defaults.shortlist,
        help="on a CPU, a copy of an 8-bit head in 4 bits chooses N tokens, and only theirs are "
        "computed in 8 bits; 0 for all tokens (default: %(default)s)",
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


def add_prefill(p: argparse._ActionsContainer) -> None:
    """Add what prompts are multiplied by."""
    p.add_argument(
        "--prefill",
        choices=PREFILLS,
        default=DEFAULTS.prefill,
        help="int8: INT4 packages for a CPU get a second copy of the decoder's weights, in 8 bits, "
        "that only prompts read: about twice as fast, and closer to the float model, for a byte "
        "more a weight on disk and in memory (default: %(default)s)",
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
