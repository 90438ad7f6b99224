"""What every command shares: progress on the terminal, errors in one line, exit codes."""

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
"""Progress and messages; results go to stdout."""


def progress(in_bytes: bool = False) -> Progress:
    """A progress display with rate and time left: live on a terminal, silent in a log.

    Args:
        in_bytes: steps are bytes, shown as sizes with a speed.
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
    """Print an error as one line."""
    line = escape(" ".join(str(error).split()))
    console.print(f"[bold red]error[/]: {line}", soft_wrap=True)


def run(command: Callable[[], int | None]) -> int:
    """Run a command; a `UserError` becomes one line and exit code 2, Ctrl-C becomes 130."""
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
