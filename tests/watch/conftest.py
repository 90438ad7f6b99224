"""A raw export of the demo checkpoint, shared by all tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.engine.facts import Facts
from surgery.engine.options import Options


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export; RAW_EXPORT=DIR in the environment takes one that is there."""
    if "RAW_EXPORT" in os.environ:
        return Path(os.environ["RAW_EXPORT"])
    folder = tmp_path_factory.mktemp("export") / "raw"
    subprocess.run([sys.executable, "-m", "export_min", "-o", str(folder)], check=True)
    return folder


@pytest.fixture
def facts(raw: Path) -> Facts:
    """The demo with default options."""
    return Facts.load(raw, Options())
