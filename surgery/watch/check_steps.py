"""`--check-steps`: check each pass by running the graph before and after it in onnxruntime.

Both graphs run on the same inputs, and the line of the pass shows the largest difference of their
outputs. A large graph is shortened first; the shortened copy goes through the same passes as the
whole graph, and only the copy runs.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented

from surgery.base.console import announce
from surgery.base.errors import UserError
from surgery.engine.facts import Facts
from surgery.engine.runner import Record
from surgery.rewrite.copies import copied
from surgery.rewrite.float_activations import float_activations
from surgery.rewrite.shortlists import choose_all
from surgery.watch.compare import Difference, Outputs, Runner, differences
from surgery.watch.examples import Example, examples
from surgery.watch.shorten import LIMIT, shortened
from surgery.watch.store import Store, Weights
from surgery.watch.unpacked import reference

TOLERANCE = 2e-5
"""Largest allowed difference relative to the largest value of the output. It covers the rounding of
float32 operations in another order."""

LOOSER = {
    "half": 1e-2,  # ten bits of mantissa instead of 23
}
"""Tolerances of the passes that reduce precision on purpose."""

ROUNDED = "not checked: from here on the cache is rounded to int8; `verify` compares the package"
"""About a pass whose effect depends on the range of keys, which random inputs do not have."""


class StepError(UserError):
    """A pass changed what the graph computes."""


class CheckSteps:
    """A watcher that compares the graph after each pass with the graph before it.

    Args:
        repro: directory for the graphs and inputs of a failure.
        limit: largest size of the weights in bytes for which the whole graph runs.
    """

    def __init__(self, repro: Path = Path("build/repro"), limit: int = LIMIT) -> None:
        self.repro, self.limit = repro, limit
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.examples: list[Example] = []
        self.pending: list[str] = []

    def begin(self, name: str, model: ir.Model, facts: Facts) -> None:
        """Run the raw graph."""
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
        """Run the graph after a pass and return the largest difference as text.

        onnxruntime may be unable to load a graph between two passes, such as one with float16
        scales but float32 activations. The graph after the next pass is then compared with the
        last graph that ran.

        Raises:
            StepError: the difference exceeds the tolerance of the pass.
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
            return "to be checked with the next pass: onnxruntime cannot load this graph on the CPU"
        if rounded_cache(self.model) and not rounded_cache(self.base):
            record.notes["check"] = {"skipped": ROUNDED}
            self.known, self.base, self.pending = answers, self.model, []
            return ROUNDED
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
        """Remove the temporary graphs."""
        self.leftover()
        if self.folder is not None:
            self.folder.cleanup()

    def leftover(self) -> None:
        """Report the last passes of a graph that could not be checked."""
        if self.pending:
            passes = ", ".join(self.pending)
            announce(f"not checked in the {self.name} graph: {passes}")
        self.pending = []

    def load(self, model: ir.Model, name: str) -> Runner:
        """Save a graph, its activations in float and no token left out of a choice, and load it."""
        copy = copied(model)
        float_activations(copy)
        choose_all(copy)
        return Runner(self.store.save(copy, f"{name}.onnx"))

    def answers(self, runner: Runner) -> list[Outputs]:
        """Return the outputs of a graph for each example."""
        return [runner(self.name, example) for example in self.examples]

    def compare(self, answers: list[Outputs]) -> list[Difference]:
        """Return the differences from the outputs of the last graph that ran, for each example."""
        pairs = zip(self.examples, self.known, answers, strict=True)
        return [d for example, want, got in pairs for d in differences(example, want, got)]

    def save(self, record: Record, before: ir.Model) -> Path:
        """Save both graphs and the inputs of all examples; return their folder."""
        folder = self.repro / f"{self.name}-{record.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        store = Store(folder, Weights.COPY)
        store.save(before, "before.onnx")
        store.save(self.model, "after.onnx")
        widths = widest(before, self.model)
        arrays = {
            f"{i}/{name}": array[..., : widths[name]] if array.ndim else array
            for i, example in enumerate(self.examples)
            for name, array in example.feeds.items()
            if name in widths
        }
        np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
        return folder


def rounded_cache(model: ir.Model) -> bool:
    """Whether a graph reads past keys and values in int8."""
    return any(value.dtype == ir.DataType.INT8 for value in model.graph.inputs)


def widest(*models: ir.Model) -> dict[str, int | None]:
    """Columns of each input, those of the widest where graphs differ; None for any number.

    Examples hold more than most graphs take: embeddings with DeepStack features behind them.
    """
    found: dict[str, int | None] = {}
    for model in models:
        for value in model.graph.inputs:
            name, shape = value.name or "", value.shape
            columns = shape[-1] if shape is not None and len(shape) else None
            known = found.get(name, 0)
            if isinstance(columns, int) and known is not None:
                found[name] = max(known, columns)
            else:
                found[name] = None
    return found


def words(worst: Difference, cut: str, unpacked: bool) -> str:
    """Return the result of a check for the line of the pass."""
    against = ", compared with dequantized weights" if unpacked else ""
    where = f" ({cut})" if cut else ""
    if worst.absolute == 0:
        return f"checked: outputs are bit-identical{against}{where}"
    return (
        f"checked: {worst.output} differs by {worst.absolute:.1e}, "
        f"relative {worst.relative:.1e}{against}{where}"
    )


def failure(record: Record, worst: Difference, tolerance: float, saved: Path) -> str:
    """Return the message about a pass whose difference exceeds its tolerance."""
    return (
        f"{record.name}: {worst.output} of the {record.graph} graph differs by "
        f"{worst.absolute:.3g}, relative {worst.relative:.3g}, tolerance {tolerance:g}, on the "
        f"example {worst.example}. See before.onnx, after.onnx and inputs.npz in {saved}."
    )
