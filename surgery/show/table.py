"""Tables of the recipes and passes, made from docstrings, for `--list` and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import names, passes
from surgery.rewrite.contract import FIELDS


def plain() -> str:
    """Return recipes and passes as plain text. The generic recipes come last."""
    lines = [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in RECIPES.items()]
    lines += ["", "generic recipes, for python -m surgery apply --recipe:"]
    lines += [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in GENERIC.items()]
    for name, made in (passes() | passes(GENERIC)).items():
        about = made.describe()
        lines += ["", f"{name}: {about['summary']}"]
        lines += [f"  {word:<9} {about[word]}" for word in (*FIELDS, "upstream") if word in about]
    return "\n".join(lines)


def markdown() -> str:
    """Return Markdown: the order of passes for each graph, then a table with a row per pass."""
    return "\n".join(
        [*order(), "", "| pass | before | after | why |", "|---|---|---|---|", *rows()]
    )


def order() -> Iterator[str]:
    """Yield a line with the order of passes for each graph."""
    for name, recipe in RECIPES.items():
        yield f"- **{name}**: {' → '.join(f'`{step}`' for step in names(recipe))}"


def rows() -> Iterator[str]:
    """Yield a table row for each pass."""
    for name, made in passes().items():
        about = made.describe()
        cells = [f"`{name}`", *(cell(about[word]) for word in ("before", "after", "why"))]
        yield f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Escape text for a table cell."""
    return text.replace("|", "\\|")
