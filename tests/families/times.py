"""Time of one run of our graph relative to that of other tools' graphs.

All graphs run in one process in turns, several rounds, so that what else the machine does meets all
of them alike; a ratio is the median of the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from cells import Cell, arrays
from judge import Feeds, by_onnxruntime, by_onnxscript, inline, operated
from optimum import Kept
from stock import Decoder

ROUNDS = 11
TURN = 0.05
"""Seconds that our graph runs in each round; the others run as often."""
PAST = 256
"""Tokens in the cache of a decoder."""
LENGTH = 128
"""Tokens that a text encoder reads."""


def measured(cell: Cell, cache: object, rounds: int = ROUNDS) -> list[float | None]:
    """Our time relative to onnxscript's and to onnxruntime's; None for one that does not run."""
    path = cell.path(cache)  # type: ignore[arg-type]
    made = [operated(path, cell.subject.recipe), by_onnxscript(path), by_onnxruntime(path)]
    return ratios(made, one_run(cell), rounds)


def one_run(cell: Cell) -> dict[str, np.ndarray]:
    """One token behind a cache for decoders, one picture, sound or text for others."""
    subject = cell.subject
    if isinstance(subject, Decoder):
        return dict(arrays(subject.inputs(1, 1, PAST, 1)))
    if isinstance(subject, Kept):
        if subject.heads is None:
            return next(iter(subject.cases()))
        return subject.decoder_case(1, 1, PAST, 0, np.random.default_rng(1))
    return dict(arrays(subject.inputs(1, LENGTH, 1)))


def ratios(models: Sequence[ir.Model], feeds: Feeds, rounds: int = ROUNDS) -> list[float | None]:
    """Time of the first graph relative to each of the others."""
    runs = [Run(model, feeds) for model in models]
    ours, others = runs[0], runs[1:]
    ours.seconds(3)
    turns = max(3, int(TURN / ours.seconds(3)))
    going = [run for run in runs if run.runs]
    found: list[list[float]] = [[] for _ in others]
    for number in range(rounds):
        first = number % len(going)
        spent = {run: run.seconds(turns) for run in (*going[first:], *going[:first])}
        for run, rows in zip(others, found, strict=True):
            if run in spent:
                rows.append(spent[ours] / spent[run])
    return [statistics.median(rows) if rows else None for rows in found]


class Run:
    """A session as users have it, on one thread, and its inputs.

    Attributes:
        runs: whether onnxruntime loads and runs the graph.
    """

    def __init__(self, model: ir.Model, feeds: Feeds) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            self.session = ort.InferenceSession(
                inline(model), options, providers=["CPUExecutionProvider"]
            )
            wanted = {i.name for i in self.session.get_inputs()}
            self.feeds = {name: array for name, array in feeds.items() if name in wanted}
            self.session.run(None, self.feeds)
            self.runs = True
        except Exception:  # onnxruntime's own kinds have no common base
            self.runs = False

    def seconds(self, turns: int) -> float:
        """Seconds of one run, the mean of some."""
        start = time.perf_counter()
        for _ in range(turns):
            self.session.run(None, self.feeds)
        return (time.perf_counter() - start) / turns
