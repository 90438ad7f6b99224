"""The part of the report about one step: its figures, drawings and diff."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery.rewrite import view
from surgery.show.changes import Change, Group, folded
from surgery.show.figures import check, chips, milliseconds, misses, ops, size
from surgery.show.plan import plan
from surgery.show.region import LARGEST, draw

DRAWINGS = 3
"""Largest number of groups of changes that are drawn for a pass."""
LINES = 700
"""Largest number of diff lines for a pass."""
KINDS = {"-": "gone", "+": "new", "~": "touched"}
"""CSS class of a changed node by the sign of the change."""


@dataclass(frozen=True)
class Scale:
    """The largest values of a graph, which get the longest bars."""

    nodes: int
    weights: int

    @classmethod
    def of(cls, stages: list[dict[str, Any]]) -> Scale:
        """Return the largest values of all steps of a graph."""
        nodes = [s[key] for s in stages for key in ("nodes_before", "nodes_after") if key in s]
        return cls(max(nodes, default=1), max(sum(s["weights"].values()) for s in stages) or 1)


def step(
    graph: str, data: dict[str, Any], model: ir.Model, about: dict[str, str] | None, scale: Scale
) -> dict[str, Any]:
    """Return what the page shows of a step, without its changes.

    Args:
        graph: name of the graph.
        data: the entry of the step in run.json.
        model: the graph after the step.
        about: fields of the pass's docstring, or None for the raw graph.
        scale: the values of the longest bars.
    """
    total, nodes = sum(data["weights"].values()), view.size(model)
    return {
        "id": f"{graph}-{data['stem']}",
        "name": data.get("pass", "raw"),
        "summary": about["summary"] if about else "The graph as it was exported.",
        "rule": {k: about[k] for k in ("before", "after", "keeps", "why")} if about else {},
        "sites": data.get("sites", 0),
        "nodes": nodes,
        "node_bar": round(100 * nodes / scale.nodes),
        "weight_bar": round(100 * total / scale.weights),
        "size": size(total),
        "time": milliseconds(data["seconds"]) if "seconds" in data else "",
        "check": check(data.get("check")),
        "chips": list(chips(data, total)),
        "ops": list(ops(view.histogram(model), data.get("deltas", {}))),
        "weights": [
            {"name": name, "size": size(n), "bar": 100 * n / scale.weights}
            for name, n in data["weights"].items()
        ],
        "misses": misses(data["misses"]),
        "plan": plan(data.get("details", {}).get("plan")),
        "drawings": [],
        "diff": [],
        "files": "",
    }


def change(old: str, new: str, before: str, after: str, groups: list[Group]) -> dict[str, Any]:
    """Return what the page shows of the changes between two steps.

    Args:
        old: name of the earlier step's files.
        new: name of the later step's files.
        before: text of the earlier graph.
        after: text of the later graph.
        groups: the changes.
    """
    lines = list(diff(folded(before, groups), folded(after, groups)))
    if len(lines) > LINES:
        lines = [*lines[:LINES], ("hunk", f"{len(lines) - LINES} more lines in the files")]
    return {
        "files": f"{old}.txt {new}.txt",
        "drawings": [drawing(group) for group in groups[:DRAWINGS]],
        "diff": lines,
    }


def drawing(group: Group) -> dict[str, str]:
    """Draw the first unit of a group of changes, before and after."""
    gone, came = group.side("before"), group.side("after")
    alike = (
        f"one of {len(group.units)} that changed in the same way" if len(group.units) > 1 else ""
    )
    many = max(len(gone), len(came)) - LARGEST
    more = f"the first {LARGEST} of {many + LARGEST} nodes" if many > 0 else ""
    before = picture(gone, f"{group.title} before")
    after = picture(came, f"{group.title} after")
    return {
        "title": group.title,
        "note": ", ".join(filter(None, (alike, more))),
        "before": before,
        "after": after,
        "columns": f"{column(before)} {column(after)}",
    }


def column(drawing: str) -> str:
    """Return the width of a drawing's column for a CSS grid."""
    width = re.search(r"--natural:(\d+)px", drawing)
    return f"minmax(90px, {max(int(width[1]), 120) if width else 120}fr)"


def picture(changes: list[Change], title: str) -> str:
    """Draw the changed nodes of one side as SVG."""
    kinds = {change.node.name or "": KINDS[change.sign] for change in changes}
    if not changes:
        return ""
    return draw([change.node for change in changes], kinds, title)


def diff(before: list[str], after: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a unified diff, each after its CSS class."""
    for line in difflib.unified_diff(before, after, lineterm="", n=2):
        if line.startswith(("---", "+++")):
            continue
        if line.startswith("@@"):
            yield "hunk", line
        else:
            module = "module" if line[1:].startswith("# ") else ""
            yield {"-": "del", "+": "add"}.get(line[0], module), line
