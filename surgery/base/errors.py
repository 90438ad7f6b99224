"""Errors that the user can fix. The one-line message states the facts, then what to do."""

from __future__ import annotations


class UserError(Exception):
    """Invalid input, output path or graph. Commands exit with code 2."""


class OutputError(UserError):
    """The output cannot be written to the given path."""


class PackageError(UserError):
    """A file of a directory is missing or broken, or two of its files contradict each other."""


class CheckpointError(UserError):
    """The checkpoint cannot be used. The one-line message says what was found and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
