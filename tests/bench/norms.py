"""A residual sum and the norm behind it, as two nodes and as onnxruntime's node for both.

    python tests/bench/norms.py [--rows 1 80 512 2304] [--width 1024] [--rounds 7]

Eight of them follow each other in one graph, so that what goes in and comes out counts little. The
table has microseconds of one, medians of the rounds on all cores of the CPU; the forms run in turn.
"with a bias" adds the bias of a projection, too, which the fused node takes as an input. Nothing
else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

COUNT = 8
FORMS = {
    "Add, LayerNormalization": "t{i} = Add({x}, {y}) y{i} = LayerNormalization(t{i}, w, b)",
    "SkipLayerNormalization": (
        "y{i}, p{i}, q{i}, t{i} = com.microsoft.SkipLayerNormalization({x}, {y}, w, b)"
    ),
    "Add, LayerNormalization, with a bias": (
        "s{i} = Add({y}, c) t{i} = Add({x}, s{i}) y{i} = LayerNormalization(t{i}, w, b)"
    ),
    "SkipLayerNormalization, with a bias": (
        "y{i}, p{i}, q{i}, t{i} = com.microsoft.SkipLayerNormalization({x}, {y}, w, b, c)"
    ),
    "Add, RMSNormalization": "t{i} = Add({x}, {y}) y{i} = RMSNormalization(t{i}, w)",
    "SkipSimplifiedLayerNormalization": (
        "y{i}, p{i}, q{i}, t{i} = com.microsoft.SkipSimplifiedLayerNormalization"
        "<epsilon = 0.00001>({x}, {y}, w)"
    ),
}


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--rows", type=int, nargs="+", default=[1, 80, 512, 2304])
    p.add_argument("--width", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=7)
    args = p.parse_args()
    table = Table(title=f"microseconds, rows of {args.width}, {os.cpu_count()} cores")
    table.add_column("")
    sessions = {name: session(form, args.width) for name, form in FORMS.items()}
    columns = []
    for rows in args.rows:
        table.add_column(f"{rows:,} rows", justify="right")
        columns.append(measured(sessions, rows, args.width, args.rounds))
    for name in FORMS:
        table.add_row(name, *(f"{1e6 * column[name]:,.1f}" for column in columns))
    Console(width=100).print(table)


def session(form: str, width: int) -> ort.InferenceSession:
    """The graph of one form, run as it stands."""
    lines, x, y = [], "x", "y"
    for i in range(COUNT):
        lines.append(form.format(i=i, x=x, y=y))
        x, y = f"t{i}", f"y{i}"
    weights = ", ".join(f"float[{width}] {name}" for name in "wbc")
    text = f"""<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
        g (float[1, n, {width}] x, float[1, n, {width}] y, {weights}) => (float[1, 1, {width}] last)
        {{ {" ".join(lines)} first = Constant<value_ints = [0]>()
           last = Gather<axis = 1>({y}, first) }}"""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.parser.parse_model(text).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measured(
    sessions: dict[str, ort.InferenceSession], rows: int, width: int, rounds: int
) -> dict[str, float]:
    """Seconds of one sum and norm, by form."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, rows, width), np.float32) for name in "xy"}
    weights = {name: rng.standard_normal(width, np.float32) for name in "wbc"}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    repeats = max(5, 200 // rows)
    for _ in range(rounds):
        for name, one in sessions.items():
            given = feeds | {k: v for k, v in weights.items() if k in inputs(one)}
            one.run(None, given)
            start = time.perf_counter()
            for _ in range(repeats):
                one.run(None, given)
            times[name].append((time.perf_counter() - start) / repeats / COUNT)
    return {name: statistics.median(found) for name, found in times.items()}


def inputs(one: ort.InferenceSession) -> set[str]:
    """Names of the inputs of a session."""
    return {port.name for port in one.get_inputs()}


if __name__ == "__main__":
    main()
