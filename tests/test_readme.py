"""What the README says of the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from surgery.show.table import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_of_passes() -> None:
    """Written by: python -c 'from surgery.show.table import markdown; print(markdown())'."""
    (block,) = re.findall(r"<!-- passes -->\n(.*?)\n<!-- /passes -->", README, re.DOTALL)
    assert block.strip() == markdown().strip()


def test_ci_runs_the_test_command() -> None:
    (command,) = re.findall(r"<!-- test -->\n```bash\n(.*?)\n```", README, re.DOTALL)
    assert "pytest" in command and "constraints.txt" in command
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_files_that_it_names_exist() -> None:
    named = re.findall(r"`((?:tests|export_min|surgery|quant)/[\w./-]+)`|\]\(([\w./-]+)\)", README)
    for path in {a or b for a, b in named}:
        assert (ROOT / path).exists(), path
