"""The console of every command: progress, errors in one line, and exit codes.

The console is one object for the whole process. `--quiet` and `run` change its state and the signal
handlers, so commands that run in two threads affect each other.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from surgery.base.errors import UserError

console = Console(stderr=True, highlight=False)
"""Prints progress and messages to standard error. Results go to standard output."""


def progress(in_bytes: bool = False) -> Progress:
    """Return a progress display with the time left. It prints only on a terminal.

    Args:
        in_bytes: whether steps are bytes, to be shown as sizes and a speed.
    """
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def complain(error: UserError) -> None:
    """Print an error as one line on standard error."""
    line = escape(" ".join(str(error).split()))
    console.print(f"[bold red]error[/]: {line}", soft_wrap=True)


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    A `UserError` is printed as one line and gives exit code 2. Ctrl-C and SIGTERM give 130, a
    closed pipe gives 141. The handler for SIGTERM is set for the whole process.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command() or 0
    except UserError as e:
        complain(e)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
