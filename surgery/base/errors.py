"""Errors that the user can fix. The one-line message states the facts, then what to do."""

from __future__ import annotations

LONGEST_WORD = 300
"""Characters of a word in a message, such as a path; longer ones lose their middle."""
LONGEST = 2000
"""Characters of a message."""


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


def plain(text: str) -> str:
    """Text that may hold names from files as one line that is safe to print.

    Characters that steer a terminal or turn the direction of text become escapes such as `\\x1b`,
    and very long words lose their middle.
    """
    words = (shortened(word, LONGEST_WORD) for word in text.split())
    return shortened(" ".join(visible(word) for word in words), LONGEST)


def visible(word: str) -> str:
    """A word whose characters can all be seen."""
    if word.isprintable():
        return word
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word)


def shortened(text: str, most: int) -> str:
    """A text with its middle left out where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
