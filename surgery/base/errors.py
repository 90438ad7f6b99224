"""Errors whose message is one line for the person at the keyboard: facts first, then what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something about the input, the output place or the graph; commands exit with 2 on it."""


class OutputError(UserError):
    """The output cannot be written where it was asked for."""


class PackageError(UserError):
    """A directory is not what it should be: a file is missing, or two files disagree."""


class CheckpointError(UserError):
    """The checkpoint cannot be used. The message is one line: what was found, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, to keep ours to one; its class where empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
