"""The README's question about a picture, asked as written there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import Case

ROOT = Path(__file__).parents[2]


def test_question_about_a_picture(cases: Callable[[str], Case]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"```bash\n(python -m surgery chat [^`]*?)\n```\n+```\n(.*?)\n```"
    (found,) = re.findall(pattern, readme, re.DOTALL)
    command, answer = found
    words = shlex.split(command.replace("\\\n", " ").replace("build/cpu-int4", "PACKAGE"))
    words = [sys.executable, *words[1:]]
    words = [str(cases("demo").int4) if word == "PACKAGE" else word for word in words]
    out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == answer.strip()
