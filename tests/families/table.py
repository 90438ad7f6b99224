"""Models against passes, as Markdown."""

from __future__ import annotations

from pathlib import Path

from export import GRAPHS
from measure import EVERYWHERE, Result

from surgery.recipes_generic import GENERIC
from surgery.selection import names

TABLE = Path(__file__).parent / "TABLE.md"
INTRODUCTION = """\
# Passes on other models

Tiny random models of each family, exported with plain `torch.onnx.export`, taken through the
generic recipes, and compared with PyTorch on shapes that the export has not seen. `n/m`: fired at
n of the m places that the architecture has; a letter refers to the reason below. `-`: the
architecture has no such place. Made by `pytest tests/families --update-table`.
"""


def render(results: dict[str, Result]) -> str:
    """The whole file."""
    parts = [INTRODUCTION]
    reasons: list[str] = []
    for recipe, title in (("decoder", "Text decoders"), ("vision", "Vision towers")):
        some = {n: r for n, r in results.items() if GRAPHS[n].recipe == recipe}
        parts += [f"## {title}", grid(recipe, some, reasons)]
    lines = [f"- {letter(i)}: {reason}" for i, reason in enumerate(reasons)]
    if lines:
        parts += ["## Near-misses", "\n".join(lines)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


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
    if not expected and not fired:
        return "-"
    if name not in result.reasons:
        return f"{fired}/{expected}"
    reason = f"`{name}`: {general(result.reasons[name])}"
    if reason not in reasons:
        reasons.append(reason)
    return f"{fired}/{expected} {letter(reasons.index(reason))}"


def general(reason: str) -> str:
    """A reason without the module that it was found in."""
    return reason.partition(": ")[2] or reason


def letter(number: int) -> str:
    """a, b, c, ..."""
    return chr(ord("a") + number)
