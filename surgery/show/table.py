"""The passes and their order, from their docstrings: for `--list` and for docs/passes.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import names, passes
from surgery.engine.step import Recipe
from surgery.rewrite.contract import FIELDS, Pass

WIDTH = 96
"""Columns of a line in the blocks of the page."""
LABEL = 9
"""Columns of the name of a field, the space behind it included."""

INTRODUCTION = """\
# The passes

Every pass is a class in `surgery.passes` and a word on the command line. This page is made from
their docstrings: `python -m surgery.show.table > surgery/docs/passes.md` writes it.

The fields of a pass: *before* and *after* show the nodes that it looks for and the nodes that it
puts there; *keeps* says what stays the same; *not* says which graphs it leaves alone; *why* says
what the pass is good for; *needs* names the passes that have to run before it on a graph that an
exporter wrote. Letters in shapes: B batch, S new tokens, T tokens with the past, H hidden size,
N heads, D width of a head, P patches, V vocabulary, E experts, K columns of a matrix."""


def plain() -> str:
    """Return recipes and passes as plain text. The generic recipes come last."""
    lines = [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in RECIPES.items()]
    lines += ["", "generic recipes, for python -m surgery apply --recipe:"]
    lines += [f"{name:<10} {' > '.join(names(recipe))}" for name, recipe in GENERIC.items()]
    for name, made in every().items():
        about = made.describe()
        lines += ["", f"{name}: {about['summary']}"]
        lines += [f"  {word:<9} {about[word]}" for word in (*FIELDS, "upstream") if word in about]
    return "\n".join(lines)


def page() -> str:
    """The same as a page of Markdown: the recipes, then the passes by subject."""
    parts = [INTRODUCTION, "## Recipes", "`python -m surgery`, the graphs of a package:"]
    parts += ["\n".join(order(RECIPES))]
    parts += ["`python -m surgery apply --recipe NAME`, a graph that somebody else exported:"]
    parts += ["\n".join(order(GENERIC))]
    for subject, members in by_subject().items():
        parts += [f"## {subject.capitalize()}", *(entry(made) for made in members)]
    return "\n\n".join(parts) + "\n"


def every() -> dict[str, type[Pass]]:
    """Every pass of any recipe by name."""
    return passes() | passes(GENERIC)


def order(recipes: Mapping[str, Recipe[Any]]) -> Iterator[str]:
    """A line for each recipe."""
    for name, recipe in recipes.items():
        yield f"- **{name}**: {' → '.join(f'`{step}`' for step in names(recipe))}"


def by_subject() -> dict[str, list[type[Pass]]]:
    """The passes by the folder that they lie in, both in alphabetical order."""
    found: dict[str, list[type[Pass]]] = {}
    for _, made in sorted(every().items()):
        found.setdefault(made.__module__.split(".")[-2], []).append(made)
    return dict(sorted(found.items()))


def entry(made: type[Pass]) -> str:
    """A pass: its names, its summary, its fields."""
    about = made.describe()
    rows = {word: about[word] for word in (*FIELDS, "upstream") if word in about}
    if made.needs:
        rows["needs"] = ", ".join(made.needs)
    lines = [line for word, text in rows.items() for line in wrapped(word, text)]
    heading = f"### `{made.name}`, class `{made.__name__}`"
    return "\n".join([heading, "", about["summary"], "", "```text", *lines, "```"])


def wrapped(word: str, text: str) -> list[str]:
    """A field in lines of `WIDTH` columns, those after the first indented."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{word:<{LABEL}}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    print(page(), end="")
