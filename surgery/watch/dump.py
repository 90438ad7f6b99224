"""`--dump`: write the graph after each pass as `decoder/03_noop.txt` and `decoder/03_noop.onnx`.

A value has the same number in the text of every step, so `diff -u` between the texts of two steps
shows what a pass changed.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.base import manifest
from surgery.base.errors import OutputError
from surgery.engine.facts import Facts
from surgery.engine.recipes.qwen_vl import RECIPES
from surgery.engine.runner import Record
from surgery.rewrite import view
from surgery.rewrite.contract import Pass
from surgery.rewrite.matcher import Miss
from surgery.rewrite.scope import place
from surgery.watch.provenance import bytes_by_dtype, lines
from surgery.watch.results import data
from surgery.watch.store import Store, Weights

RUN = "run.json"
"""File with the records of a run. It names the writer, so that a new dump may replace this one."""
FILES = re.compile(r"\d\d_\w+\.(txt|onnx)|weights\.data")
"""Names of the files in a graph's folder, beside links to shards."""

MISSES = 20
"""Largest number of near-misses that a dump records for a step."""


@dataclass
class DumpedStep:
    """What `RUN` records of a raw graph or of a graph after a pass."""

    stem: str
    weights: dict[str, int]
    misses: list[dict[str, Any]]
    record: Record | None = None

    def data(self) -> dict[str, Any]:
        """Return the step as plain data."""
        own = {"stem": self.stem, "weights": self.weights, "misses": self.misses}
        if self.record is None:
            return own
        return own | data(self.record) | {"details": self.record.work.details()}


class Dump:
    """A watcher that writes the graph after each pass.

    Args:
        folder: directory to write, either new or an earlier dump.
        weights: how weights are stored.
    """

    def __init__(self, folder: Path, weights: Weights = Weights.LINK) -> None:
        self.folder, self.weights = folder, weights
        self.stages: dict[str, list[DumpedStep]] = {}
        self.about: dict[str, Any] = {}

    def begin(self, name: str, model: ir.Model, facts: Facts) -> None:
        """Write the raw graph.

        Raises:
            OutputError: the directory holds other files, or it cannot be written.
        """
        if not self.stages:
            claim(self.folder)
        self.name, self.facts, self.names = name, facts, view.Names()
        (self.folder / name).mkdir()
        self.store = Store(self.folder / name, self.weights)
        self.about = {"source": facts.manifest.get("source"), "options": facts.options.data()}
        self.stages[name] = []
        self.write("00_raw", model, None)

    def after(self, record: Record, model: ir.Model) -> str:
        """Write the graph after a pass."""
        self.write(f"{record.index:02d}_{record.name}", model, record)
        return ""

    def end(self) -> None:
        """Write the records of the run."""
        if not self.stages:
            return
        graphs = {name: [s.data() for s in stages] for name, stages in self.stages.items()}
        write_run(self.folder, {**self.about, "graphs": graphs})

    def write(self, stem: str, model: ir.Model, record: Record | None) -> None:
        """Write a step as text and as ONNX, and record it."""
        text = view.text(model, self.names, types=True) + "\n".join(["# weights", *lines(model)])
        path = self.folder / self.name / f"{stem}.txt"
        path.write_text(text + "\n", encoding="utf-8")
        self.store.save(model, f"{stem}.onnx")
        misses = [] if record is None else near(record.step.make(self.facts), model)
        self.stages[self.name].append(DumpedStep(stem, bytes_by_dtype(model), misses, record))


def near(work: Pass, model: ir.Model) -> list[dict[str, Any]]:
    """Return the nearest near-misses of a pass as plain data."""
    return [miss_data(miss) for miss in work.near_misses(model)[:MISSES]]


def miss_data(miss: Miss) -> dict[str, Any]:
    """Return a near-miss as plain data."""
    return {
        "where": place(miss.node),
        "op": miss.node.op_type,
        "node": miss.node.name,
        "needs": miss.condition,
        "found": str(miss.found),
        "met": miss.depth,
    }


def claim(folder: Path) -> None:
    """Create the directory of a dump, or empty it of an earlier dump.

    Of an earlier dump the folders of graphs go, unless they hold a file that no dump writes.

    Raises:
        OutputError: the directory holds other files, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(manifest.files(folder))
        about = manifest.read_object(folder / RUN) or {}
        if present and about.get("writer") != manifest.WRITER:
            raise OutputError(
                f"{folder}: not empty and not an earlier dump (no {RUN} of a dump). "
                f"Choose another directory."
            )
        for name in present:
            if not is_dumped(folder, name):
                raise OutputError(
                    f"{folder}: holds {name}, which no dump writes. Choose another directory."
                )
        for name in RECIPES:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
        write_run(folder, {})
    except OSError as e:
        raise OutputError(f"{folder}: cannot be written: {e.strerror}.") from e


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write `RUN`."""
    whole = {"writer": manifest.WRITER, "kind": "dump", **run}
    (folder / RUN).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def is_dumped(folder: Path, name: str) -> bool:
    """Whether a file, by its path in the directory, lies in no graph's folder or is a dump's."""
    graph, _, last = name.partition("/")
    if graph not in RECIPES or not last:
        return graph not in RECIPES or (folder / name).is_dir()
    return (folder / name).is_symlink() or bool(FILES.fullmatch(last))
