"""Why a pass acts here and not there: its sites, and the places that matched some way in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from surgery.base.errors import UserError
from surgery.engine import runner
from surgery.engine.facts import Facts
from surgery.engine.loading import graph_files, load, load_any
from surgery.engine.options import Options, Settings
from surgery.engine.recipes.generic import GENERIC
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.selection import Selection, known, names, passes
from surgery.engine.step import Recipe, S
from surgery.match.logits import head_weights
from surgery.rewrite.contract import Site
from surgery.rewrite.matcher import Miss
from surgery.rewrite.scope import place


@dataclass(frozen=True)
class Explanation:
    """A pass on a graph as it stands right before it.

    Attributes:
        graph: name of the graph.
        step: what comes before: the name of the pass that ran last, or "raw".
        sites: where it acts.
        misses: where it nearly acts, nearest first.
    """

    graph: str
    step: str
    sites: list[Site]
    misses: list[Miss]


def explain(name: str, facts: Facts, graph: str | None = None) -> list[Explanation]:
    """Run each recipe up to a pass and ask the pass.

    Args:
        name: the pass.
        facts: the raw export and the options.
        graph: the one graph to look at; all whose recipe has the pass by default.

    Raises:
        UserError: no such pass or graph, or no such step with these options.
    """
    known("explain", name, passes())
    if graph is not None and name not in names(RECIPES[known("--graph", graph, RECIPES)]):
        raise UserError(f"{name}: no pass of the {graph} graph.")
    chosen = Selection(until=name, graph=graph)
    found = [e for one in chosen.graphs for e in explain_graph(name, one, facts)]
    if not found:
        raise UserError(f"{name}: no step of a run with these options.")
    return found


def explain_foreign(
    name: str, source: Path, recipe: str, options: Options, graph: str | None = None
) -> list[Explanation]:
    """The same for graphs that others exported, in a generic recipe.

    Args:
        name: the pass.
        source: an ONNX file, or a folder of them.
        recipe: "decoder", "vision" or "any".
        options: precision, provider and sizes.
        graph: the one graph of a folder to look at, by its name without ".onnx".

    Raises:
        UserError: no such pass, recipe or graph, or no such step with these options.
    """
    known("explain", name, passes(GENERIC))
    steps = GENERIC[known("--recipe", recipe, GENERIC)]
    if name not in names(steps):
        raise UserError(f"{name}: no pass of the {recipe} recipe.")
    paths = {path.stem: path for path in graph_files(source)}
    if graph is not None:
        paths = {graph: paths[known("--graph", graph, paths)]}
    found: list[Explanation] = []
    for stem, path in paths.items():
        model = load_any(path)
        settings = Settings(options=options, head_names=head_weights(model))
        found += walk(name, stem, model, steps, settings)
    if not found:
        raise UserError(f"{name}: no step of a run with these options.")
    return found


def explain_graph(name: str, graph: str, facts: Facts) -> Iterator[Explanation]:
    """A pass at each of its places in the recipe of a graph."""
    model = load(facts.raw / f"{graph}.onnx", facts.weights)
    yield from walk(name, graph, model, RECIPES[graph], facts)


def walk(
    name: str, graph: str, model: ir.Model, steps: Recipe[S], settings: S
) -> Iterator[Explanation]:
    """A pass at each of its places in a recipe, which is run up to there."""
    recipe = [step for step in steps if step.when(settings)]
    last = max((i for i, step in enumerate(recipe) if step.work.name == name), default=-1)
    for i, step in enumerate(recipe[: last + 1]):
        if step.work.name == name:
            work = step.make(settings)
            previous = names(tuple(recipe[i - 1 : i]))
            sites, misses = work.sites(model), work.near_misses(model)
            yield Explanation(graph, previous[0] if previous else "raw", sites, misses)
        for _ in runner.run(graph, model, (step,), settings):
            pass


def lines(explanation: Explanation, at: str | None = None, limit: int = 12) -> Iterator[str]:
    """An explanation for people.

    Args:
        explanation: what was found.
        at: a module: only what lies in it, or in a module whose path contains these words.
        limit: sites and near-misses that are shown of each kind.
    """
    sites = [s for s in explanation.sites if within(s.where, at)]
    misses = [m for m in explanation.misses if within(place(m.node), at)]
    yield f"{explanation.graph}, after {explanation.step}: {len(sites)} sites"
    for site in sites[:limit]:
        yield f"  {site.where}: {site.what}"
    if len(sites) > limit:
        yield f"  and {len(sites) - limit} more"
    yield f"  {len(misses)} near-misses"
    for miss in misses[:limit]:
        yield f"  {place(miss.node)}: {miss.node.op_type} {miss.node.name}"
        yield f"    held    {miss.depth} condition{'s' * (miss.depth != 1)} before it"
        yield f"    needs   {miss.condition}"
        yield f"    found   {miss.found}"
    if len(misses) > limit:
        yield f"  and {len(misses) - limit} more; --at MODULE narrows"


def within(where: str, at: str | None) -> bool:
    """Whether a place lies in a module, whose path may be given in part."""
    return at is None or at in where
