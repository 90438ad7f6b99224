"""What every command shares: progress on the terminal, and errors in one line."""

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

from surgery.base.errors import UserError, plain

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
    console.print(f"[bold red]error[/]: {escape(plain(str(error)))}", soft_wrap=True)
