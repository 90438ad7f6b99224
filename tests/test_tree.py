"""What lies at the top of the repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {
    *(".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "constraints.txt"),
    *("export_min", "pyproject.toml", "quant", "surgery", "tests"),
}


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no clone, or no git"
)
def test_nothing_else_is_tracked() -> None:
    """Tools leave files where they run; one that is committed stays in every clone for ever."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\0")
    assert {name.partition("/")[0] for name in names if name} == TOP
