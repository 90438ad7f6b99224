"""Each pass checked by running the graph before and after it.

Both run in onnxruntime on the same examples, and the pass's line shows the largest difference. A
large model is cut first; the cut graph then goes through the same passes beside the whole one.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented

from surgery.base.console import console
from surgery.base.errors import UserError
from surgery.engine.facts import Facts
from surgery.engine.runner import Record
from surgery.rewrite.copies import copied
from surgery.watch.compare import Difference, Outputs, Runner, differences
from surgery.watch.examples import Example, examples
from surgery.watch.shorten import LIMIT, shortened
from surgery.watch.store import Store, Weights
from surgery.watch.unpacked import reference

TOLERANCE = 2e-5
"""Largest difference that a pass may make, in units of the largest number of that output: rounding
of float32 in another order."""

LOOSER = {
    "half": 1e-2,  # ten bits of mantissa instead of 23
}
"""Passes that round on purpose, with what that may cost."""


class StepError(UserError):
    """A pass changed what the graph computes."""


class CheckSteps:
    """Runs each step of a run against the one before.

    Args:
        repro: where the graphs and inputs of a failure are kept.
        limit: bytes of weights up to which a graph is run whole.
    """

    def __init__(self, repro: Path = Path("build/repro"), limit: int = LIMIT) -> None:
        self.repro, self.limit = repro, limit
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.examples: list[Example] = []
        self.pending: list[str] = []

    def begin(self, name: str, model: ir.Model, facts: Facts) -> None:
        """Run a graph as it was exported."""
        self.leftover()
        self.name, self.facts = name, facts
        self.folder = self.folder or tempfile.TemporaryDirectory(prefix="surgery-")
        place = Path(self.folder.name) / name
        place.mkdir()
        self.store = Store(place, Weights.COPY)
        self.model, self.cut = shortened(model, self.limit)
        self.examples = examples(name, self.model, facts)
        self.base = self.model
        self.known = self.answers(self.load(self.model, "raw"))

    def after(self, record: Record, model: ir.Model) -> str:
        """Run a graph after a pass; the words are the largest difference.

        A graph that does not load here (float16 scales wait for float16 activations) is left to
        the next pass, which is then compared with the last graph that ran.

        Raises:
            StepError: the difference is above the tolerance of the pass.
        """
        if self.cut:
            self.model = copied(self.model)
            record.step.make(self.facts)(self.model)
        else:
            self.model = copied(model)
        self.pending.append(record.name)
        try:
            answers = self.answers(self.load(self.model, f"{record.index}"))
        except (NotImplemented, InvalidGraph, Fail) as e:
            reason = " ".join(str(e).split(" failed:")[-1].split())
            record.notes["check"] = {"skipped": reason}
            return "checked with the next: onnxruntime does not load this graph on a CPU"
        unpacked = reference(self.base, self.model)
        if unpacked is not None:
            self.known = self.answers(self.load(unpacked, f"{record.index}_unpacked"))
        worst = max(self.compare(answers), key=lambda d: d.relative)
        tolerance = max(LOOSER.get(name, TOLERANCE) for name in self.pending)
        figures = asdict(worst) | {"tolerance": tolerance, "cut": self.cut, "of": self.pending}
        record.notes["check"] = figures | {"unpacked": unpacked is not None}
        if worst.relative > tolerance:
            saved = self.save(record, unpacked or self.base)
            raise StepError(failure(record, worst, tolerance, saved))
        self.known, self.base, self.pending = answers, self.model, []
        return words(worst, self.cut, unpacked is not None)

    def end(self) -> None:
        """Remove the graphs that were run."""
        self.leftover()
        if self.folder is not None:
            self.folder.cleanup()

    def leftover(self) -> None:
        """Say which passes at the end of a graph no run has covered."""
        if self.pending:
            passes = ", ".join(self.pending)
            console.print(f"not checked in the {self.name} graph: {passes}", markup=False)
        self.pending = []

    def load(self, model: ir.Model, name: str) -> Runner:
        """A graph, ready to run."""
        return Runner(self.store.save(model, f"{name}.onnx"))

    def answers(self, runner: Runner) -> list[Outputs]:
        """What a graph says to each example."""
        return [runner(self.name, example) for example in self.examples]

    def compare(self, answers: list[Outputs]) -> list[Difference]:
        """All differences to what is known."""
        pairs = zip(self.examples, self.known, answers, strict=True)
        return [d for example, want, got in pairs for d in differences(example, want, got)]

    def save(self, record: Record, before: ir.Model) -> Path:
        """Keep both graphs and the inputs of all examples."""
        folder = self.repro / f"{self.name}-{record.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        store = Store(folder, Weights.COPY)
        store.save(before, "before.onnx")
        store.save(self.model, "after.onnx")
        arrays = {f"{i}/{k}": v for i, e in enumerate(self.examples) for k, v in e.feeds.items()}
        np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
        return folder


def words(worst: Difference, cut: str, unpacked: bool) -> str:
    """The figures of a pass on its line."""
    against = " from its unpacked weights" if unpacked else ""
    where = f" ({cut})" if cut else ""
    if worst.absolute == 0:
        return f"checked: same bits{against}{where}"
    return (
        f"checked: {worst.output} off by {worst.absolute:.1e}, "
        f"relative {worst.relative:.1e}{against}{where}"
    )


def failure(record: Record, worst: Difference, tolerance: float, saved: Path) -> str:
    """The error of a pass over its tolerance."""
    return (
        f"{record.name}: {worst.output} of the {record.graph} graph is off by "
        f"{worst.absolute:.3g}, relative {worst.relative:.3g}, tolerance {tolerance:g}, on "
        f"{worst.example}. Kept in {saved}: before.onnx, after.onnx, inputs.npz."
    )
