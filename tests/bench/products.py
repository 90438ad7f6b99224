"""One product with a weight in each form that the passes make, by number of rows.

    python tests/bench/products.py [--shapes 1024x4096 2048x6144] [--rows 1 8 16 64 512 2304]

Each form is a graph of one MatMul [rows, K] x [K, N] after a pass of this project, in onnxruntime
with all cores; the forms run in turn, and the table has the speed of the median run in GFLOP/s and,
in brackets, times that of 4-bit blocks of 128. Quantizing activations is part of the time. Weights
are random; one small enough for a cache runs faster here than among others. Nothing else may run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from surgery.passes import MatMulInt8, MatMulNBits
from surgery.rewrite.weights import Array as Rows
from surgery.rewrite.weights import RowTensor, Source

BASE = "4 bits, blocks of 128"
FORMS: dict[str, Callable[[], ir.passes.InPlacePass] | None] = {
    "float32": None,
    BASE: lambda: MatMulNBits(None, 4, bits=4, block=128, symmetric=False, expect=1),
    "8 bits, blocks of 128": lambda: MatMulNBits(None, 4, bits=8, block=128, expect=1),
    "8 bits, rows": lambda: MatMulInt8(expect=1),
}


class Random:
    """A float32 weight `[K, N]`."""

    def __init__(self, k: int, n: int) -> None:
        self.array = np.random.default_rng(0).standard_normal((k, n), np.float32)

    @property
    def parts(self) -> tuple[tuple[ir.DataType, tuple[int, ...]], ...]:
        """Dtype and shape."""
        return ((ir.DataType.FLOAT, self.array.shape),)

    def read(self, start: int, stop: int) -> tuple[Rows, ...]:
        """Some rows."""
        return (self.array[start:stop],)


def main() -> None:
    """Print a table for each shape."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--shapes", nargs="+", default=["1024x4096", "2048x6144", "6144x2048"])
    p.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64, 512, 2304])
    p.add_argument("--repeats", type=int, default=21)
    args = p.parse_args()
    for shape in args.shapes:
        k, n = map(int, shape.split("x"))
        sessions = {name: session(k, n, make) for name, make in FORMS.items()}
        table = Table(title=f"K {k}, N {n}, {os.cpu_count()} cores; GFLOP/s (x {BASE})")
        table.add_column("rows", justify="right")
        for name in sessions:
            table.add_column(name, justify="right")
        for rows in args.rows:
            speeds = measured(sessions, rows, k, n, args.repeats)
            cells = (f"{speed:.0f} ({speed / speeds[BASE]:.2f})" for speed in speeds.values())
            table.add_row(str(rows), *cells)
        Console(width=110).print(table)


def session(
    k: int, n: int, make: Callable[[], ir.passes.InPlacePass] | None
) -> ort.InferenceSession:
    """A product in one form."""
    source: Source = Random(k, n)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", k]))
    tensor = RowTensor(source, name="weight")
    weight = ir.Value(
        name="weight", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([k, n]),
        const_value=tensor,
    )  # fmt: skip
    node = ir.node("MatMul", [x, weight], name="product")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", n])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[weight], opset_imports={"": 23}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    if make is not None:
        make()(model)
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def measured(
    sessions: dict[str, ort.InferenceSession], rows: int, k: int, n: int, repeats: int
) -> dict[str, float]:
    """GFLOP/s of the median run of each form."""
    x = np.random.default_rng(1).standard_normal((rows, k), np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(repeats + 1):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, {"x": x})
            if turn:  # the first run is not counted
                times[name].append(time.perf_counter() - start)
    return {
        name: 2 * rows * k * n / statistics.median(taken) / 1e9 for name, taken in times.items()
    }


if __name__ == "__main__":
    main()
