"""`python -m export_min`: a checkpoint to raw graphs.

`python -m export_min check`: is the checkpoint sound? `python -m export_min answer`: PyTorch's
answers for another program.
"""

from __future__ import annotations

import argparse
import sys

from surgery.base.guard import run


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one of the three commands."""
    words = sys.argv[1:] if argv is None else argv
    named = {"check": check_command, "answer": answer_command}
    if words and words[0] in named:
        return run(lambda: named[words[0]](words[1:]))
    return run(lambda: export_command(words))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options that the commands share."""
    result = argparse.ArgumentParser(f"python -m export_min{command}", description=description)
    result.add_argument(
        "-i",
        "--input",
        metavar="CHECKPOINT",
        help="a local directory or a hub id (default: the embedded demo checkpoint)",
    )
    result.add_argument(
        "-c", "--cache-dir", "--cache_dir", metavar="DIR", help="where the hub keeps downloads"
    )
    result.add_argument("--revision", help="branch, tag or commit on the hub")
    return result


def export_command(words: list[str]) -> int:
    """Export the three raw graphs."""
    from export_min import export

    options = parser("", "Export a Qwen-VL checkpoint as raw ONNX graphs, weights left in place.")
    options.epilog = (
        "python -m export_min check: run the checkpoint in PyTorch first. "
        "python -m export_min answer: answer another program's questions in PyTorch."
    )
    options.add_argument("-o", "--output", default="build/raw", help="default: %(default)s")
    options.add_argument("--force", action="store_true", help="replace an earlier output")
    args = options.parse_args(words)
    export(args.input, args.output, args.cache_dir, args.revision, args.force)
    return 0


def check_command(words: list[str]) -> int:
    """Run the PyTorch pipeline on a few prompts and a picture."""
    from export_min.check import check

    options = parser(" check", "Run a checkpoint in PyTorch on four prompts and a picture.")
    options.add_argument("--image", metavar="PATH", help="your picture (default: a red circle)")
    options.add_argument(
        "--max-new-tokens", "--max_new_tokens", type=int, default=64, help="default: %(default)s"
    )
    options.add_argument("-o", "--output", default="pytorch_test_outputs.txt")
    args = options.parse_args(words)
    check(args.input, args.output, args.cache_dir, args.revision, args.max_new_tokens, args.image)
    return 0


def answer_command(words: list[str]) -> int:
    """Answer requests from standard input until it closes."""
    from export_min.answer import serve

    about = "Answer another program's questions in PyTorch: JSON lines in and out."
    args = parser(" answer", about).parse_args(words)
    return serve(args.input, args.cache_dir, args.revision)


if __name__ == "__main__":
    sys.exit(main())
