"""What the tests of bad input share: the type of a refusal, and a folder as hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

Refused = Callable[..., str]
"""Runs a command that must fail, and returns its one line."""


def digest(folder: Path) -> dict[str, str]:
    """Every file of a directory by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
