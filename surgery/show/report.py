"""Draw a dumped run as one HTML page, which needs no network and no other file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import onnx_ir as ir

from surgery.base.errors import PackageError
from surgery.engine import loading
from surgery.engine.selection import passes
from surgery.show import step_page as picture
from surgery.show.changes import Group, changes
from surgery.show.figures import short
from surgery.watch.dump import RUN

PAGE = "report.html"
"""Name of the page in the directory of the dump."""


@dataclass
class LoadedStep:
    """A step that was read from a dump: its entry in run.json, its graph and its text."""

    data: dict[str, Any]
    model: ir.Model
    text: str

    @classmethod
    def load(cls, folder: Path, data: dict[str, Any]) -> LoadedStep:
        """Read a step from the folder of its graph."""
        stem = data["stem"]
        text = (folder / f"{stem}.txt").read_text(encoding="utf-8")
        return cls(data, loading.load(folder / f"{stem}.onnx"), text)


def report(folder: Path) -> Path:
    """Draw the run that was dumped to a directory.

    Returns:
        Path of the page, which is in the same directory.

    Raises:
        PackageError: the directory holds no complete dump.
    """
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        graphs = [read_graph(folder, name, stages) for name, stages in run["graphs"].items()]
    except (FileNotFoundError, KeyError, json.JSONDecodeError) as e:
        raise PackageError(
            f"{folder}: holds no dump of a run ({RUN} is missing or incomplete). "
            f"Run python -m surgery --dump {folder} first."
        ) from e
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("surgery.show"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = {
        "title": title(run),
        "subtitle": subtitle(run),
        "graphs": [graph for graph, _ in graphs],
        "first": graphs[-1][0]["home"],
        "index": script_safe([entry for _, entries in graphs for entry in entries]),
        "footer": "Drawn by python -m surgery report. Arrow keys move from pass to pass.",
    }
    path = folder / PAGE
    path.write_text(environment.get_template(PAGE).render(page=page), encoding="utf-8")
    return path


def read_graph(
    folder: Path, name: str, stages: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the page shows of a graph, and the entries of the graph in the search index."""
    steps, index = [], []
    before: LoadedStep | None = None
    scale = picture.Scale.of(stages)
    for data in stages:
        stage = LoadedStep.load(folder / name, data)
        groups = changes(before.model, stage.model) if before is not None else []
        about = passes()[data["pass"]].describe() if "pass" in data else None
        step = picture.step(name, data, stage.model, about, scale)
        if before is not None:
            step |= picture.change(
                before.data["stem"], data["stem"], before.text, stage.text, groups
            )
        steps.append(step)
        index += [entry for group in groups for entry in entries(group, step)]
        before = stage
    biggest = max(steps[1:] or steps, key=lambda s: len(s["drawings"]) and s["sites"])
    home = next(
        (s["id"] for s in steps if s["name"] in ("group_query_attention", "packed_attention")),
        biggest["id"],
    )
    return {"name": name, "steps": steps, "home": home}, index


def entries(group: Group, step: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a group of changes in the search index, with the nodes of all units."""
    found = []
    units = [sorted(changes, key=lambda c: c.kind) for changes in group.changes]
    for same in zip(*units, strict=True):
        change = same[0]
        if (change.sign, change.side) == ("~", "before"):
            continue  # the node after the change is listed
        inside = f".{change.module}" if change.module else ""
        found.append(
            {
                "to": step["id"],
                "pass": step["name"],
                "sign": change.sign,
                "op": change.node.op_type,
                "module": f"{group.stack}.{{}}{inside}" if group.stack else change.module,
                "units": group.units,
                "names": [other.node.name for other in same],
            }
        )
    return found


def title(run: dict[str, Any]) -> str:
    """Return the title of the page, with the name of the checkpoint."""
    source = str(run.get("source") or "a checkpoint")
    return f"{Path(source).name}, pass by pass"


def subtitle(run: dict[str, Any]) -> str:
    """Return execution provider, precision, and totals of the run."""
    options = run.get("options") or {}
    stages = [stage for stages in run["graphs"].values() for stage in stages]
    first = sum(s[1]["nodes_before"] for s in run["graphs"].values() if len(s) > 1)
    last = sum(s[-1]["nodes_after"] for s in run["graphs"].values() if len(s) > 1)
    checks = [s["check"] for s in stages if s.get("check", {}).get("relative") is not None]
    parts = [
        f"{options.get('execution_provider')}, {options.get('text_precision')}",
        f"{first:,} → {last:,} nodes in {sum(s.get('seconds', 0) for s in stages):.1f} s",
    ]
    if checks:
        worst = max(check["relative"] for check in checks)
        parts.append(f"{len(checks)} steps checked, largest relative difference {short(worst)}")
    return "  ·  ".join(parts)


def script_safe(value: object) -> str:
    """Return JSON that is safe inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
