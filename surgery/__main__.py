"""`python -m surgery`: build a package for onnxruntime-genai from raw graphs, and use it.

The first word on the command line names a command. Without one, the command is `build`. Each
command is a module of `surgery.commands` with `configure(parser)` and `main(args)`.
"""

from __future__ import annotations

from surgery.base import early  # noqa: F401  before anything that takes time

# isort: split
import argparse
import importlib
import sys

from surgery.base.guard import leave, run

COMMANDS = {
    "build": "build a package from raw graphs (the default)",
    "apply": "run a generic recipe on any ONNX graphs",
    "verify": "check the files, graphs, configurations and logits of a package",
    "chat": "ask the model in a package a question, with or without pictures",
    "demo": "show the page that asks a package for transformers.js in a browser",
    "eval": "measure the answers of a package on a set of questions",
    "prepack": "store a package's weights packed for this CPU, to be mapped instead of copied",
    "profile": "show where the time of an answer goes, by op type",
    "explain": "show where a pass matches, and where it nearly matches",
    "report": "draw a run as one HTML page",
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run a command; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return run(lambda: command_line(words))


def command_line(words: list[str]) -> int:
    """Parse the command line and run a command. Errors come through."""
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
    # intermixed, because "chat DIR --image PATH PROMPT" has an option between two positional words
    args = parser.parse_intermixed_args(words[1:] if named else words)
    return int(module.main(args))


if __name__ == "__main__":
    leave(main())
