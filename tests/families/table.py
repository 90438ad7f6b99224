"""Models against passes, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export import GRAPHS
from measure import EVERYWHERE, Result

import surgery
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.selection import names

TABLE = Path(surgery.__file__).parent / "docs" / "models.md"
INTRODUCTION = """\
# Passes on models of other families

The passes look at the structure of a graph, not at names. To measure how far that carries, tiny
random models of each family were exported with `torch.onnx.export`, taken through the generic
recipes of `python -m surgery apply`, and compared with PyTorch on shapes that the export has not
seen. `n/m`: the pass fired at n of the m places that the architecture has. `-`: the architecture
has no such place. A letter refers to a reason below: why a pass declines what looks like a place
for it, or misses one. `pytest tests/families --update-table` makes this page.
"""
ELSEWHERE = "## Graphs from elsewhere"
TRAINED = """\
A graph that somebody else exported, and trained models exported with plain `torch.onnx.export`,
out of packages that are installed by hand. Made by
`pytest tests/families --foreign --update-table`.

| graph | package | nodes | sites | largest difference |
| --- | --- | --- | --- | --- |
"""


def render(results: dict[str, Result], elsewhere: str) -> str:
    """The whole file.

    Args:
        results: what was measured, by graph.
        elsewhere: the section on graphs from elsewhere.
    """
    parts = [INTRODUCTION]
    reasons: list[str] = []
    for recipe, title in (("decoder", "Text decoders"), ("vision", "Vision towers")):
        some = {n: r for n, r in results.items() if GRAPHS[n].recipe == recipe}
        parts += [f"## {title}", grid(recipe, some, reasons)]
    lines = [f"- {letter(i)}: {reason}" for i, reason in enumerate(reasons)]
    if lines:
        parts += ["## Reasons", "\n".join(lines)]
    return "\n\n".join(part.strip("\n") for part in (*parts, elsewhere)) + "\n"


def trained(results: dict[str, Result], graphs: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """The section on graphs from elsewhere."""
    lines, reasons = [], []
    for name, result in results.items():
        graph = graphs[name]
        fired = ", ".join(
            f"`{word}` {result.fired[word]}/{n}" for word, n in result.expected.items()
        )
        label = f"{graph.name}, {graph.trained}, recipe `{graph.recipe}`"
        nodes = f"{result.before} → {result.after}"
        lines.append(f"| {label} | {graph.package} | {nodes} | {fired} | {result.error:.0e} |")
        reasons += [
            f"- {graph.name}: `{word}` declines: {general(reason)}"
            for word, reason in result.reasons.items()
        ]
        reasons += [f"- {graph.name}: {notes[name]}"] if name in notes else []
    return f"{ELSEWHERE}\n\n{TRAINED}" + "\n".join([*lines, "", *reasons])


def kept() -> str:
    """The section on graphs from elsewhere as it was measured last."""
    _, title, section = TABLE.read_text(encoding="utf-8").partition(ELSEWHERE)
    return title + section


def grid(recipe: str, results: dict[str, Result], reasons: list[str]) -> str:
    """One table: passes that have a place somewhere are its columns."""
    columns = [
        name
        for name in dict.fromkeys(names(GENERIC[recipe]))
        if name not in EVERYWHERE and any(r.expected.get(name) for r in results.values())
    ]
    lines = [
        "| model | nodes | " + " | ".join(f"`{c}`" for c in columns) + " |",
        "|" + " --- |" * (len(columns) + 2),
    ]
    for name, result in results.items():
        cells = [cell(result, column, reasons) for column in columns]
        model = name.removesuffix(f", {recipe}")
        lines.append(f"| {model} | {result.before} → {result.after} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(result: Result, name: str, reasons: list[str]) -> str:
    """Sites found of those expected."""
    expected, fired = result.expected.get(name, 0), result.fired.get(name, 0)
    count = f"{fired}/{expected}" if expected or fired else "-"
    if name not in result.reasons:
        return count
    reason = f"`{name}`: {general(result.reasons[name])}"
    if reason not in reasons:
        reasons.append(reason)
    return f"{count} {letter(reasons.index(reason))}"


def general(reason: str) -> str:
    """A reason without the module that it was found in."""
    return reason.partition(": ")[2] or reason


def letter(number: int) -> str:
    """a, b, c, ..."""
    return chr(ord("a") + number)
