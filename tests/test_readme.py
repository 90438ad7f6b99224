"""The README and the pages of `surgery/docs` say what the code does, and their commands run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

import surgery
from surgery.show import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = Path(surgery.__file__).parent / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
INTERFACE = (DOCS / "interface.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")

SETUP = (
    "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e . \\\n  && "
)
"""What the first command does before the main job; the tests run in an environment that has it."""

NOT_RUN = ["test", "not run: needs the hub"]
"""Blocks that no test can run, by the comment above them; "test" runs the tests themselves."""


@dataclass(frozen=True)
class Block:
    """A block of code, and the comment on the line above it."""

    language: str
    code: str
    mark: str = ""

    def commands(self) -> list[list[str]]:
        """Its command lines, or the whole program, as words for a subprocess."""
        if self.language == "python":
            return [["python", "-c", self.code]]
        lines = self.code.replace("\\\n", " ").splitlines()
        return [["bash", "-euo", "pipefail", "-c", line] for line in lines]


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in order."""
    pattern = r"(?:<!-- ([^>]*) -->\n)?```(\w*)\n(.*?)```"
    return [Block(lang, code, mark) for mark, lang, code in re.findall(pattern, text, re.DOTALL)]


def run_pages(folder: Path, tools: Path) -> dict[str, str]:
    """What each command of the README, then of interface.md, printed: run in an empty folder."""
    (folder / "export_min").symlink_to(ROOT / "export_min", target_is_directory=True)
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tools / "python").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    printed = {}
    for block in blocks(README.replace(SETUP, "")) + blocks(INTERFACE):
        for words in [] if block.mark in NOT_RUN else block.commands():
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True
            )
            allowed = (0, 1) if words[-1].startswith("diff ") else (0,)
            assert done.returncode in allowed, f"{words[-1]}\n{done.stdout}{done.stderr}"
            printed[words[-1]] = done.stdout
    return printed


def output(said: dict[str, str], part: str) -> str:
    """What the one command that contains a text printed."""
    (found,) = [text for command, text in said.items() if part in command]
    return found


def test_the_setup_is_written_once() -> None:
    assert README.count(SETUP) == 1


def test_only_what_cannot_run_is_left_out() -> None:
    found = blocks(README) + blocks(INTERFACE)
    assert {block.language for block in found} == {"bash", "python"}
    assert [block.mark for block in found if block.mark] == NOT_RUN


def test_every_command_in_the_order_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All run in one folder, and show what the pages say."""
    said = run_pages(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("bin"))
    answer = re.findall(r"question about a picture \(`([^`]+)`\)", README)
    assert [output(said, "surgery chat").strip()] == answer
    assert [output(said, "og.Model").strip()] == answer
    assert output(said, "diff -u").startswith("--- steps/decoder/07_")
    assert "4 sites" in output(said, "explain group_query_attention --graph")
    assert "silu: 4 sites" in output(said, '"steps/decoder/00_raw.onnx"')
    (line,) = re.findall(r"# (silu: .*)", INTERFACE)
    assert line in output(said, "build/other").splitlines()


def test_ci_runs_the_test_command() -> None:
    (command,) = [block.code for block in blocks(README) if block.mark == "test"]
    assert "pytest" in command and "constraints.txt" in command
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|export_min|surgery|quant)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or path.endswith("/subtract.py"), path
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / path).exists(), path


def test_the_page_of_passes() -> None:
    """Written by: python -m surgery.show.table > surgery/docs/passes.md."""
    assert (DOCS / "passes.md").read_text(encoding="utf-8") == table.page()


def test_the_number_of_other_models() -> None:
    models = (DOCS / "models.md").read_text(encoding="utf-8").partition("## Reasons")[0]
    rows = re.findall(r"^\| [A-Z].* → ", models, re.MULTILINE)
    assert f"{len(rows)} graphs of other model families" in README


def test_the_headline_is_measured() -> None:
    headline = " ".join(README.partition("**")[2].partition("**")[0].split())
    figures = (DOCS / "figures.md").read_text(encoding="utf-8")
    numbers = re.findall(r"[\d.]+(?:e-\d+| %)", headline)
    assert len(numbers) == 4
    assert all(number in figures for number in numbers)


def messages() -> set[str]:
    """Every text of the code, with an ellipsis for each value that is put in."""
    found = set()
    for file in [*ROOT.glob("surgery/**/*.py"), *ROOT.glob("export_min/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.add("".join(map(str, parts)))
    return found


def quoted(nth: int) -> list[str]:
    """The first column of a table of messages."""
    heading = "| message | what to do |\n|---|---|\n"
    part = TROUBLESHOOTING.split(heading)[nth].partition("\n\n")[0]
    return [row.split(" | ")[0].removeprefix("| ") for row in part.splitlines()]


def test_our_messages_are_quoted_as_written() -> None:
    known = messages()
    for cell in quoted(1):
        assert any(cell.strip("`") in message for message in known), cell


def test_messages_of_others_are_quoted_as_written() -> None:
    """Those in Python; the rest comes out of libraries in C++, or of the system."""
    places = {
        "(torch.export)": "torch/fx/experimental/symbolic_shapes.py",
        "(rotary embeddings of transformers)": "transformers/modeling_rope_utils.py",
        "(models of transformers)": "transformers/modeling_utils.py",
    }
    cells = {place: cell for place in places for cell in quoted(2) if cell.endswith(place)}
    assert len(cells) == len(places)
    for place, file in places.items():
        spec = find_spec(file.partition("/")[0])  # not the module itself: importing torch is slow
        assert spec is not None and spec.origin is not None
        source = (Path(spec.origin).parents[1] / file).read_text(encoding="utf-8")
        text = cells[place].partition(" … ")[0].strip("` ")
        assert text in source, text


def test_the_interface_names_everything_public() -> None:
    named = set(re.findall(r"^\| `(\w+)", INTERFACE, re.MULTILINE))
    assert named == set(surgery.__all__)


def test_the_interface_has_the_signatures() -> None:
    calls = re.findall(r"^\| `([\w.]+)\((.*?)\)` \|", INTERFACE, re.MULTILINE)
    assert Counter(name.split(".")[0] for name, _ in calls)["Graph"] == 5
    for name, listed in calls:
        made = surgery
        for word in name.split("."):
            made = getattr(made, word)
        found = [n for n in inspect.signature(made).parameters if n != "self"]
        words = [word.split("=")[0].strip("* ") for word in listed.split(",")]
        if words[-1] == "..." or name == "Runtime":
            found = found[: len(words) - (words[-1] == "...")]
        assert [word for word in words if word != "..."] == found, name


def test_the_interface_has_the_options() -> None:
    (row,) = re.findall(r"^\| `Options` \| (.*) \|", INTERFACE, re.MULTILINE)
    fields = [field.name for field in dataclasses.fields(surgery.Options)]
    assert re.findall(r"`(\w+)`", row) == fields
