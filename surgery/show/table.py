"""The passes and their order as tables, from their docstrings: `--list`, and the README."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import names, passes
from surgery.rewrite.contract import FIELDS


def plain() -> str:
    """Recipes and passes for a terminal; those for graphs of others come after the package's."""
    lines = [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in RECIPES.items()]
    lines += ["", "apply --recipe, for graphs of others:"]
    lines += [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in GENERIC.items()]
    for name, made in (passes() | passes(GENERIC)).items():
        about = made.describe()
        lines += ["", f"{name}: {about['summary']}"]
        lines += [f"  {word:<9} {about[word]}" for word in (*FIELDS, "upstream") if word in about]
    return "\n".join(lines)


def markdown() -> str:
    """The same for a README: the order for each graph, then a row for each pass."""
    return "\n".join(
        [*order(), "", "| pass | before | after | why |", "|---|---|---|---|", *rows()]
    )


def order() -> Iterator[str]:
    """A line for each graph."""
    for name, recipe in RECIPES.items():
        yield f"- **{name}**: {' → '.join(f'`{step}`' for step in names(recipe))}"


def rows() -> Iterator[str]:
    """A row for each pass."""
    for name, made in passes().items():
        about = made.describe()
        cells = [f"`{name}`", *(cell(about[word]) for word in ("before", "after", "why"))]
        yield f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Text that a table takes."""
    return text.replace("|", "\\|")
