"""The command line of `export_min`.

`python -m export_min` exports a checkpoint as raw ONNX graphs. `python -m export_min check` runs
the checkpoint in PyTorch, to see whether its answers make sense. `python -m export_min answer`
answers the questions of another program in PyTorch.
"""

from __future__ import annotations

import argparse
import sys

from surgery.base.arguments import add_hub
from surgery.base.guard import leave, run


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one of the three commands."""
    words = sys.argv[1:] if argv is None else argv
    named = {"check": check_command, "answer": answer_command}
    if words and words[0] in named:
        return run(lambda: named[words[0]](words[1:]))
    return run(lambda: export_command(words))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the commands share."""
    result = argparse.ArgumentParser(f"python -m export_min{command}", description=description)
    result.add_argument(
        "-i",
        "--input",
        metavar="CHECKPOINT",
        help="a local directory or a hub id (default: the demo checkpoint)",
    )
    add_hub(result)
    return result


def export_command(words: list[str]) -> int:
    """Export the three raw graphs."""
    from export_min import export

    options = parser(
        "", "Export a Qwen-VL checkpoint as raw ONNX graphs that refer to its weights in place."
    )
    options.epilog = (
        "python -m export_min check: run the checkpoint in PyTorch first. "
        "python -m export_min answer: answer the questions of another program in PyTorch."
    )
    options.add_argument(
        "-o", "--output", default="build/raw", help="directory to write (default: %(default)s)"
    )
    options.add_argument("--force", action="store_true", help="replace an earlier output")
    args = options.parse_args(words)
    export(args.input, args.output, args.cache_dir, args.revision, args.force)
    return 0


def check_command(words: list[str]) -> int:
    """Run the checkpoint in PyTorch on four prompts and a picture."""
    from export_min.check import check

    options = parser(" check", "Run a checkpoint in PyTorch on four prompts and a picture.")
    options.add_argument(
        "--image", metavar="PATH", help="picture of the last prompt (default: a red circle)"
    )
    options.add_argument(
        "--max-new-tokens",
        "--max_new_tokens",
        type=int,
        default=64,
        metavar="N",
        help="largest number of tokens in an answer (default: %(default)s)",
    )
    options.add_argument(
        "-o",
        "--output",
        default="pytorch_test_outputs.txt",
        help="text file for the answers (default: %(default)s)",
    )
    args = options.parse_args(words)
    check(args.input, args.output, args.cache_dir, args.revision, args.max_new_tokens, args.image)
    return 0


def answer_command(words: list[str]) -> int:
    """Answer requests from standard input until it closes."""
    from export_min.answer import serve

    about = "Answer another program's questions in PyTorch: JSON lines in and out."
    options = parser(" answer", about)
    options.add_argument("--text", action="store_true", help="a language model of any family")
    args = options.parse_args(words)
    return serve(args.input, args.cache_dir, args.revision, args.text)


if __name__ == "__main__":
    leave(main())
