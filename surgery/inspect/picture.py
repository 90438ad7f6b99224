"""The parts of the page about one step: figures, drawings, diff."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from surgery import view
from surgery.inspect.changes import Change, Group, folded
from surgery.inspect.region import LARGEST, draw

DRAWINGS = 3
"""Groups of changes that are drawn for a pass."""
LINES = 700
"""Lines of a diff that the page holds."""
OPS = 14
"""Op types that a histogram shows."""
KINDS = {"-": "gone", "+": "new", "~": "touched"}
"""CSS class of a changed node."""


@dataclass(frozen=True)
class Scale:
    """The longest bars of a graph's strip."""

    nodes: int
    weights: int

    @classmethod
    def of(cls, stages: list[dict[str, Any]]) -> Scale:
        """From all its steps."""
        nodes = [s[key] for s in stages for key in ("nodes_before", "nodes_after") if key in s]
        return cls(max(nodes, default=1), max(sum(s["weights"].values()) for s in stages) or 1)


def step(
    graph: str, data: dict[str, Any], model: ir.Model, about: dict[str, str] | None, scale: Scale
) -> dict[str, Any]:
    """A step without what changed."""
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
        "check": check(data.get("verify")),
        "chips": list(chips(data, total)),
        "ops": list(ops(view.histogram(model), data.get("deltas", {}))),
        "weights": [
            {"name": name, "size": size(n), "bar": 100 * n / scale.weights}
            for name, n in data["weights"].items()
        ],
        "misses": misses(data["misses"]),
        "drawings": [],
        "diff": [],
        "files": "",
    }


def change(old: str, new: str, before: str, after: str, groups: list[Group]) -> dict[str, Any]:
    """What changed from one step to the next."""
    lines = list(diff(folded(before, groups), folded(after, groups)))
    if len(lines) > LINES:
        lines = [*lines[:LINES], ("hunk", f"{len(lines) - LINES} more lines in the files")]
    return {
        "files": f"{old}.txt {new}.txt",
        "drawings": [drawing(group) for group in groups[:DRAWINGS]],
        "diff": lines,
    }


def drawing(group: Group) -> dict[str, str]:
    """A group of changes before and after, in its first unit."""
    gone, came = group.side("before"), group.side("after")
    alike = f"one of {len(group.units)} alike" if len(group.units) > 1 else ""
    many = max(len(gone), len(came)) - LARGEST
    more = f"the first {LARGEST} of {many + LARGEST} nodes" if many > 0 else ""
    return {
        "title": group.title,
        "note": ", ".join(filter(None, (alike, more))),
        "before": picture(gone, f"{group.title} before"),
        "after": picture(came, f"{group.title} after"),
    }


def picture(changes: list[Change], title: str) -> str:
    """The changed nodes of one side as SVG."""
    kinds = {change.node.name or "": KINDS[change.sign] for change in changes}
    if not changes:
        return ""
    return draw([change.node for change in changes], kinds, title)


def diff(before: list[str], after: list[str]) -> Iterator[tuple[str, str]]:
    """The lines of a diff with their kinds."""
    for line in difflib.unified_diff(before, after, lineterm="", n=2):
        if line.startswith(("---", "+++")):
            continue
        if line.startswith("@@"):
            yield "hunk", line
        else:
            module = "module" if line[1:].startswith("# ") else ""
            yield {"-": "del", "+": "add"}.get(line[0], module), line


def ops(histogram: Counter[str], deltas: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Rows of the histogram: what changed first, then what there is most of."""
    names = sorted({*histogram, *deltas}, key=lambda op: (op not in deltas, -histogram[op], op))
    longest = max(histogram.values(), default=1)
    for op in [name for name in names if name != "Constant"][:OPS]:
        name = op.split("::")[-1]
        count = histogram[op]
        yield {
            "name": name, "count": count, "bar": 100 * count / longest, "delta": deltas.get(op, 0),
        }  # fmt: skip


def chips(data: dict[str, Any], total: int) -> Iterator[dict[str, str]]:
    """The figures of a step in a few words each."""
    if "pass" in data:
        wanted = f" of {data['expected']} expected" if data["expected"] is not None else ""
        yield {"kind": "", "text": f"{data['sites']} sites{wanted}"}
        yield {"kind": "", "text": f"{data['nodes_before']} → {data['nodes_after']} nodes"}
        yield {"kind": "", "text": milliseconds(data["seconds"])}
    yield {"kind": "", "text": f"{size(total)} of weights"}
    verdict = check(data.get("verify"))
    if verdict is not None:
        yield {"kind": "ok" if verdict["ok"] else "bad", "text": verdict["long"]}


def check(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The verification of a step in words."""
    if found is None:
        return None
    if "skipped" in found:
        return {"ok": True, "short": "with next", "long": f"verified with the next: {found['skipped']}"}
    ok = found["relative"] <= found["tolerance"]
    if found["absolute"] == 0:
        return {"ok": ok, "short": "same bits", "long": "verified: the same bits"}
    against = ", against unpacked weights" if found["unpacked"] else ""
    long = (
        f"{found['output']} off by {found['absolute']:.1e}, relative {found['relative']:.1e}, "
        f"tolerance {found['tolerance']:.0e}{against} ({found['example']})"
    )
    return {"ok": ok, "short": short(found["relative"]), "long": long}


def short(number: float) -> str:
    """A small number without the zeros of its exponent: 7e-7."""
    return re.sub(r"e([-+])0", r"e\1", f"{number:.0e}")


def misses(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Near-misses, those that differ only in numbers as one."""
    alike: dict[tuple[str, ...], dict[str, Any]] = {}
    for miss in found:
        key = tuple(re.sub(r"\d+", "#", str(miss[k])) for k in ("op", "needs", "found"))
        if key in alike:
            alike[key]["more"] += 1
        else:
            alike[key] = {**miss, "more": 0}
    return list(alike.values())[:6]


def milliseconds(seconds: float) -> str:
    """A time."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def size(count: int) -> str:
    """Bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
