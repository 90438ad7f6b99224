"""Turn raw graphs into a package for onnxruntime-genai, or run and watch a few of the passes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from surgery.base.console import console
from surgery.base.errors import UserError
from surgery.engine.options import Options
from surgery.engine.runner import Watcher
from surgery.engine.selection import Selection
from surgery.engine.targets import TARGETS


def configure(p: argparse.ArgumentParser) -> None:
    """The options of the main job; each long name also works with underscores."""
    p.add_argument("-i", "--input", default="build/raw", help="raw export (default: %(default)s)")
    p.add_argument("-o", "--output", help="package (default: build/PROVIDER-PRECISION)")
    add_options(p)
    p.add_argument("--force", action="store_true", help="replace an earlier package")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    p.add_argument("--json", action="store_true", help="print the run as one JSON object")
    add_selection(p)
    add_watching(p)


def add_selection(p: argparse.ArgumentParser) -> None:
    """Options that choose passes; a run with one of them makes no package."""
    group = p.add_argument_group(
        "passes", "With --only, --skip, --until or --graph no package is made."
    )
    group.add_argument("--list", action="store_true", help="print the recipes and every pass")
    group.add_argument("--only", type=words, default=(), metavar="PASS[,PASS]", help="run these")
    group.add_argument("--skip", type=words, default=(), metavar="PASS[,PASS]", help="leave out")
    group.add_argument("--until", metavar="PASS", help="stop after this one")
    group.add_argument("--graph", metavar="GRAPH", help="vision, embedding or decoder alone")


def add_watching(p: argparse.ArgumentParser) -> None:
    """Options that look at the graphs between the passes; they change nothing."""
    group = p.add_argument_group("watching", "What is watched is what ships.")
    group.add_argument("--dump", metavar="DIR", help="write each step as .txt and .onnx")
    group.add_argument(
        "--check-steps",
        action="store_true",
        help="run each step in onnxruntime and compare it with the one before",
    )
    group.add_argument(
        "--dump-weights",
        choices=("link", "copy", "zeros"),
        default="link",
        help="weights of the checkpoint: linked, or copied once so that onnxruntime loads the "
        "dump; zeros write none at all (default: %(default)s)",
    )


def words(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(word for word in text.replace(" ", "").split(",") if word)


def add_options(p: argparse.ArgumentParser) -> None:
    """The choices that decide what the passes do."""
    p.add_argument(
        "-p",
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="vision and embedding (default: %(default)s)",
    )
    p.add_argument(
        "-t",
        "--text-precision",
        "--text_precision",
        choices=("int4", "fp32", "fp16"),
        default="int4",
        help="decoder (default: %(default)s)",
    )
    p.add_argument(
        "-e",
        "--execution-provider",
        "--execution_provider",
        choices=tuple(TARGETS),
        default="cpu",
        help="default: %(default)s",
    )
    p.add_argument(
        "--image-size", "--image_size", type=int, metavar="N", help="fix one square size, in pixels"
    )
    p.add_argument(
        "--max-length",
        "--max_length",
        type=int,
        default=32768,
        metavar="N",
        help="context length, rows of the rotary table (default: %(default)s)",
    )
    p.add_argument(
        "--block-size",
        "--block_size",
        type=int,
        choices=(16, 32, 64, 128, 256),
        default=32,
        help="weights that share a scale (default: %(default)s)",
    )
    p.add_argument(
        "--head-bits",
        "--head_bits",
        type=int,
        choices=(4, 8),
        default=8,
        help="bits of the head, and of the table tied to it (default: %(default)s)",
    )
    p.add_argument(
        "--hidden-states",
        "--hidden_states",
        action="store_true",
        help="the decoder gives its last hidden states too, for embeddings and rerankers",
    )
    p.add_argument("--strip", action="store_true", help="leave out module paths and doc strings")
    p.add_argument("--asymmetric", action="store_true", help="a zero point a block")


def options(args: argparse.Namespace) -> Options:
    """The choices as the passes take them."""
    return Options(
        precision=args.precision,
        text_precision=args.text_precision,
        execution_provider=args.execution_provider,
        image_size=args.image_size,
        max_length=args.max_length,
        block_size=args.block_size,
        symmetric=not args.asymmetric,
        head_bits=args.head_bits,
        hidden_states=args.hidden_states,
        strip=args.strip,
    )


def selection(args: argparse.Namespace) -> Selection:
    """The chosen passes and graphs.

    Raises:
        UserError: an unknown name.
    """
    return Selection(args.only, args.skip, args.until, args.graph)


def watchers(args: argparse.Namespace) -> list[Watcher]:
    """The chosen watchers; a dump comes first, so that it holds a step that fails."""
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
    """Build the package, or run the chosen passes."""
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
    """Run; returns what `--json` prints."""
    from surgery.engine.facts import Facts
    from surgery.jobs import build as job
    from surgery.watch.results import Results

    results = Results()
    chosen = selection(args)
    if chosen.whole:
        results.output = job.build(
            args.input, args.output, options(args), args.force, watchers(args), results.tell
        )
        return results.summary()
    if args.output is not None:
        raise UserError(
            "-o: a run with --only, --skip, --until or --graph makes no package. "
            "Leave -o out; --dump DIR keeps the graphs."
        )
    facts = Facts.load(Path(args.input), options(args))
    facts.check_unchanged()
    job.operate(facts, chosen, watchers(args), results.tell)
    results.remark(chosen)
    return results.summary()
