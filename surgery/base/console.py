"""The console of every command: progress, and errors in one line.

The console is one object for the whole process, so commands that run in two threads affect each
other.
"""

from __future__ import annotations

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

from surgery.base.errors import UserError, plain, visible

console = Console(stderr=True, highlight=False)
"""Prints progress and messages to standard error. Results go to standard output."""


def announce(text: str) -> None:
    """Print a line that may hold names from files and paths: as it is, every character visible."""
    console.print(visible(text), soft_wrap=True, markup=False)


def progress(in_bytes: bool = False, period: float = 30.0) -> Progress:
    """Return a progress display with the time left. It prints only on a terminal.

    Args:
        in_bytes: whether steps are bytes, to be shown as sizes and a speed.
        period: seconds whose steps tell the time left; it has to hold a few steps.
    """
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=period,
        disable=not console.is_terminal,
        transient=True,
    )


def complain(error: UserError) -> None:
    """Print an error as one line on standard error."""
    console.print(f"[bold red]error[/]: {escape(plain(str(error)))}", soft_wrap=True)
