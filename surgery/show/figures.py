"""The figures of one step for the report, as texts and bars."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

OPS = 14
"""Number of op types that a histogram shows."""


def ops(histogram: Counter[str], deltas: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the histogram: op types that changed first, then by falling count."""
    names = sorted({*histogram, *deltas}, key=lambda op: (op not in deltas, -histogram[op], op))
    longest = max(histogram.values(), default=1)
    for op in [name for name in names if name != "Constant"][:OPS]:
        name = op.split("::")[-1]
        count = histogram[op]
        yield {
            "name": name, "count": count, "bar": 100 * count / longest, "delta": deltas.get(op, 0),
        }  # fmt: skip


def chips(data: dict[str, Any], total: int) -> Iterator[dict[str, str]]:
    """Yield short texts with the figures of a step."""
    if "pass" in data:
        wanted = f" of {data['expected']} expected" if data["expected"] is not None else ""
        yield {"kind": "", "text": f"{data['sites']} sites{wanted}"}
        yield {"kind": "", "text": f"{data['nodes_before']} → {data['nodes_after']} nodes"}
        yield {"kind": "", "text": milliseconds(data["seconds"])}
    yield {"kind": "", "text": f"{size(total)} of weights"}
    verdict = check(data.get("check"))
    if verdict is not None:
        yield {"kind": "ok" if verdict["ok"] else "bad", "text": verdict["long"]}


def check(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the result of `--check-steps` for a step as texts, or None if it was not checked."""
    if found is None:
        return None
    if "skipped" in found:
        return {
            "ok": True,
            "short": "next step",
            "long": f"checked together with the next step: {found['skipped']}",
        }
    ok = found["relative"] <= found["tolerance"]
    if found["absolute"] == 0:
        return {"ok": ok, "short": "identical", "long": "checked: outputs are bit-identical"}
    against = ", compared with dequantized weights" if found["unpacked"] else ""
    long = (
        f"{found['output']} differs by {found['absolute']:.1e}, relative {found['relative']:.1e}, "
        f"tolerance {found['tolerance']:.0e}{against} ({found['example']})"
    )
    return {"ok": ok, "short": short(found["relative"]), "long": long}


def short(number: float) -> str:
    """Format a small number without zeros in its exponent: 7e-7."""
    return re.sub(r"e([-+])0", r"e\1", f"{number:.0e}")


def misses(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first near-misses, with those that differ only in numbers counted as one."""
    alike: dict[tuple[str, ...], dict[str, Any]] = {}
    for miss in found:
        key = tuple(re.sub(r"\d+", "#", str(miss[k])) for k in ("op", "needs", "found"))
        if key in alike:
            alike[key]["more"] += 1
        else:
            alike[key] = {**miss, "more": 0}
    return list(alike.values())[:6]


def milliseconds(seconds: float) -> str:
    """Format a time in s or ms."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def size(count: int) -> str:
    """Format a number of bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
