"""`python -m surgery`: raw graphs to a package that onnxruntime-genai runs.

Each command is a module of `surgery.commands` with `configure(parser)` and `main(args)`; the
first word names it, and without one the package is built.
"""

from __future__ import annotations

from surgery.base import early  # noqa: F401  before anything that takes time

# isort: split
import argparse
import importlib
import sys

from surgery.base.guard import run

COMMANDS = {
    "build": "turn raw graphs into a package (the default)",
    "apply": "take any ONNX graphs through a generic recipe",
    "verify": "check a package: files, graphs, configurations, logits",
    "chat": "ask a package a question, with or without pictures",
    "eval": "measure answers on a set of questions",
    "explain": "show where a pass acts, and where it nearly did",
    "report": "draw a run as one HTML page",
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run a command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return run(lambda: command_line(words))


def command_line(words: list[str]) -> int:
    """Parse the command line and run a command, errors not caught."""
    named = bool(words) and words[0] in COMMANDS
    foreign = any(word.partition("=")[0] == "--recipe" for word in words)
    command = words[0] if named else "apply" if foreign else "build"
    module = importlib.import_module(f"surgery.commands.{command}")
    parser = argparse.ArgumentParser(
        f"python -m surgery{f' {command}' if named else ''}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not named:
        lines = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
        parser.epilog = f"commands (python -m surgery COMMAND --help):\n{lines}"
    module.configure(parser)
    # intermixed: "chat DIR --image PATH PROMPT" has an option between its two words
    args = parser.parse_intermixed_args(words[1:] if named else words)
    return int(module.main(args))


if __name__ == "__main__":
    sys.exit(main())
