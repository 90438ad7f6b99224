"""Explain where a pass matches: its sites, and its near-misses.

A near-miss is a place where the first conditions of the pass hold and a later one fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.engine import runner
from surgery.engine.facts import Facts
from surgery.engine.loading import graph_files, load, load_any, naming
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import Selection, known, names, passes
from surgery.engine.step import Recipe, S
from surgery.match.logits import head_weights
from surgery.rewrite.contract import NodePass, Site
from surgery.rewrite.matcher import Miss
from surgery.rewrite.scope import place


@dataclass(frozen=True)
class Explanation:
    """Sites and near-misses of a pass on the graph right before the pass runs.

    Attributes:
        graph: name of the graph.
        step: name of the pass that ran last, or "raw".
        sites: places where the pass matches.
        misses: places where it nearly matches, nearest first; where there is neither a site nor
            such a place, every place that the pass looks at.
        absent: op types that the pass starts from, where the graph has none of them.
    """

    graph: str
    step: str
    sites: list[Site]
    misses: list[Miss]
    absent: tuple[str, ...] = ()


def explain(name: str, facts: Facts, graph: str | None = None) -> list[Explanation]:
    """Run each recipe up to a pass and return the sites and near-misses of the pass.

    Args:
        name: name of the pass.
        facts: the raw export and the options.
        graph: name of the one graph to look at. By default, every graph whose recipe contains
            the pass.

    Raises:
        UserError: there is no such pass or graph, or the pass does not run with these options.
    """
    known("explain", name, passes())
    if graph is not None and name not in names(RECIPES[known("--graph", graph, RECIPES)]):
        raise UserError(f"{name}: the recipe of the {graph} graph does not contain this pass.")
    chosen = Selection(until=name, graph=graph)
    found = [e for one in chosen.graphs for e in explain_graph(name, one, facts)]
    if not found:
        raise UserError(f"{name}: this pass does not run with these options.")
    return found


def explain_foreign(
    name: str, source: Path, recipe: str, options: Options, graph: str | None = None
) -> list[Explanation]:
    """Do the same for graphs of any exporter, with a generic recipe.

    Args:
        name: name of the pass.
        source: an ONNX file, or a folder of ONNX files.
        recipe: "decoder", "vision" or "any".
        options: precision, execution provider and sizes.
        graph: name of the one graph of a folder to look at, without ".onnx".

    Raises:
        UserError: there is no such pass, recipe or graph, or the pass does not run with these
            options.
    """
    known("explain", name, passes(GENERIC))
    steps = GENERIC[known("--recipe", recipe, GENERIC)]
    if name not in names(steps):
        raise UserError(f"{name}: the {recipe} recipe does not contain this pass.")
    paths = {path.stem: path for path in graph_files(source)}
    if graph is not None:
        paths = {graph: paths[known("--graph", graph, paths)]}
    found: list[Explanation] = []
    for stem, path in paths.items():
        with naming(path):
            model = load_any(path)
            settings = Settings(options=options, head_widths=head_weights(model))
            found += walk(name, stem, model, steps, settings)
    if not found:
        raise UserError(f"{name}: this pass does not run with these options.")
    return found


def explain_graph(name: str, graph: str, facts: Facts) -> Iterator[Explanation]:
    """Yield an explanation for each position of a pass in the recipe of a graph."""
    model = load(facts.raw / f"{graph}.onnx", facts.weights)
    yield from walk(name, graph, model, RECIPES[graph], facts.of(graph))


def walk(
    name: str, graph: str, model: ir.Model, steps: Recipe[S], settings: S
) -> Iterator[Explanation]:
    """Run a recipe up to each position of a pass and yield an explanation for each."""
    recipe = [step for step in steps if step.when(settings)]
    last = max((i for i, step in enumerate(recipe) if step.work.name == name), default=-1)
    for i, step in enumerate(recipe[: last + 1]):
        if step.work.name == name:
            work = step.make(settings)
            previous = names(tuple(recipe[i - 1 : i]))
            sites, misses = work.sites(model), work.near_misses(model)
            absent: tuple[str, ...] = ()
            if isinstance(work, NodePass) and not sites and not misses:
                misses = [found for _, found in work.scan(model) if isinstance(found, Miss)]
                absent = () if misses else work.anchors
            yield Explanation(graph, previous[0] if previous else "raw", sites, misses, absent)
        for _ in runner.run(graph, model, (step,), settings):
            pass


def lines(explanation: Explanation, at: str | None = None, limit: int = 12) -> Iterator[str]:
    """Yield an explanation as lines of text.

    Args:
        explanation: the sites and near-misses.
        at: if given, only modules whose path contains this text are shown.
        limit: largest number of sites and of near-misses that are shown.
    """
    sites = [s for s in explanation.sites if within(s.where, at)]
    misses = [m for m in explanation.misses if within(place(m.node), at)]
    yield f"{explanation.graph}, after {explanation.step}: {len(sites)} sites"
    for site in sites[:limit]:
        yield f"  {site.where}: {site.what}"
    if len(sites) > limit:
        yield f"  and {len(sites) - limit} more"
    if explanation.absent:
        yield f"  no {' or '.join(explanation.absent)} stands in the graph for it to start from"
        if "Attention" in explanation.absent:
            yield "  see explain attention, which makes one of products and a softmax"
        return
    yield f"  {len(misses)} near-misses"
    for miss in misses[:limit]:
        yield f"  {place(miss.node)}: {miss.node.op_type} {miss.node.name}"
        yield f"    held    {miss.depth} earlier condition{'s' * (miss.depth != 1)}"
        yield f"    needs   {miss.condition}"
        yield f"    found   {miss.found}"
    if len(misses) > limit:
        yield f"  and {len(misses) - limit} more; use --at MODULE to show fewer, or --all"


def within(where: str, at: str | None) -> bool:
    """Return whether a module path contains the text `at`, or no text is given."""
    return at is None or at in where
