"""The guide to writing a pass does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import surgery

GUIDE = Path(surgery.__file__).parent / "docs" / "writing_a_pass.md"


def test_the_code_of_the_guide_runs() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "guide"}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert names["Subtract"].describe()["after"] == "Sub(a, b)"


def test_the_guide_fits_on_a_page() -> None:
    assert len(GUIDE.read_text(encoding="utf-8").splitlines()) < 85
