"""Ctrl-C while a command still imports its libraries: one line instead of a traceback.

`python -m PACKAGE` imports the package before its `__main__`, so the guard around commands comes
too late for that. Importing this module does nothing in any other program.
"""

from __future__ import annotations

import os
import signal
import sys

COMMANDS = ("export_min", "surgery")


def is_command(words: list[str]) -> bool:
    """Whether a command line, the interpreter's own options included, runs one of the commands."""
    return "-m" in words and words[words.index("-m") + 1 :][:1] in ([name] for name in COMMANDS)


def end(number: int, frame: object) -> None:
    """Signal handler: nothing has been made yet, so nothing needs tidying."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
