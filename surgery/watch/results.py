"""The results of a run as plain data, for `--json` and for dumps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.base.console import announce
from surgery.engine.runner import Record
from surgery.engine.selection import Selection
from surgery.jobs.build import show


@dataclass
class Results:
    """Collects the records of a run and prints their lines.

    Attributes:
        output: the package, or None if none was written.
        passes: a dictionary for each pass.
    """

    output: Path | None = None
    passes: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, record: Record, words: str) -> None:
        """Store a record and print its line."""
        self.passes.append(data(record))
        show(record, words)

    def remark(self, selection: Selection) -> None:
        """Report selected passes that did not run, because the options leave them out."""
        ran = {entry["pass"] for entry in self.passes}
        for name in dict.fromkeys((*selection.only, *filter(None, (selection.until,)))):
            if name not in ran:
                announce(f"{name}: this pass does not run with these options")

    def summary(self) -> dict[str, Any]:
        """Return the run as plain data."""
        files = {} if self.output is None else sizes(self.output)
        output = None if self.output is None else str(self.output)
        return {"output": output, "files": files, "passes": self.passes}


def data(record: Record) -> dict[str, Any]:
    """Return a record as plain data."""
    return {
        "graph": record.graph,
        "pass": record.name,
        "index": record.index,
        "sites": record.sites,
        "expected": record.expected,
        "nodes_before": record.before,
        "nodes_after": record.after,
        "deltas": {op: n for op, n in sorted(record.deltas.items()) if n},
        "seconds": round(record.seconds, 4),
        **record.notes,
    }


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file of a directory."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
