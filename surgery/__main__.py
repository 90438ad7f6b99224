"""`python -m surgery`: raw graphs to a package that onnxruntime-genai runs."""

from __future__ import annotations

import argparse
import sys

from surgery.console import run
from surgery.facts import Options
from surgery.targets import TARGETS


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run a command."""
    words = sys.argv[1:] if argv is None else argv
    return run(lambda: build_command(words))


def build_command(words: list[str]) -> int:
    """The main job."""
    from surgery.build import build

    p = argparse.ArgumentParser(
        "python -m surgery", description="Turn raw graphs into a package for onnxruntime-genai."
    )
    p.add_argument("-i", "--input", default="build/raw", help="raw export (default: %(default)s)")
    p.add_argument("-o", "--output", help="package (default: build/PROVIDER-PRECISION)")
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
    p.add_argument("--image-size", "--image_size", type=int, help="fix one square size, in pixels")
    p.add_argument(
        "--max-length",
        "--max_length",
        type=int,
        default=32768,
        help="context length, rows of the rotary table (default: %(default)s)",
    )
    p.add_argument("--block-size", "--block_size", type=int, default=32)
    p.add_argument("--asymmetric", action="store_true", help="a zero point a block")
    p.add_argument("--force", action="store_true", help="replace an earlier package")
    args = p.parse_args(words)
    options = Options(
        args.precision,
        args.text_precision,
        args.execution_provider,
        args.image_size,
        args.max_length,
        args.block_size,
        not args.asymmetric,
    )
    build(args.input, args.output, options, args.force)
    return 0


if __name__ == "__main__":
    sys.exit(main())
