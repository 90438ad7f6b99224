"""Turn raw graphs into a package for onnxruntime-genai."""

from __future__ import annotations

import argparse

from surgery.facts import Options
from surgery.targets import TARGETS


def configure(p: argparse.ArgumentParser) -> None:
    """The options of the main job; each long name also works with underscores."""
    p.add_argument("-i", "--input", default="build/raw", help="raw export (default: %(default)s)")
    p.add_argument("-o", "--output", help="package (default: build/PROVIDER-PRECISION)")
    add_options(p)
    p.add_argument("--force", action="store_true", help="replace an earlier package")


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
    )


def main(args: argparse.Namespace) -> int:
    """Build the package."""
    from surgery.build import build

    build(args.input, args.output, options(args), args.force)
    return 0
