"""Throughput of the quantizer, in one run with what it is compared to.

    python tests/bench/quantize.py [--rows 9728] [--columns 2560] [--rounds 7]

Rounds go through all contestants in turn, so a noisy machine slows them alike; read the ratios,
and where others use the CPUs, GB for each second of CPU time.
GB/s count float32 bytes of the weight whatever dtype it has. Memory is the peak of what NumPy
allocates above the input (tracemalloc), output included; what ONNX Runtime allocates inside
itself is not seen by it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.capi import _pybind_state
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from quant import BlockFormat, quantize, quantize_parallel


def main() -> None:
    """Print a table: median and best GB/s, GB per second of CPU, times of memcpy, peak MB."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=9728, help="N, output features")
    parser.add_argument("--columns", type=int, default=2560, help="K, input features")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    logging.disable(logging.INFO)  # the quantizer of ONNX Runtime reports every matrix

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((args.rows, args.columns), dtype=np.float32)
    contestants = make_contestants(weight, args.block)
    peaks = {name: peak_bytes(call) for name, call in contestants.items()}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, call in contestants.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)

    gigabytes = weight.nbytes / 1e9
    memcpy = statistics.median(wall["memcpy"])
    print(f"[{args.rows}, {args.columns}], {gigabytes:.3f} GB of float32, block {args.block}")
    print(f"{'':44}{'GB/s':>7}{'best':>7}{'GB/CPU-s':>10}{'x memcpy':>10}{'peak MB':>9}")
    for name, seconds in wall.items():
        median = statistics.median(seconds)
        print(
            f"{name:44}{gigabytes / median:7.2f}{gigabytes / min(seconds):7.2f}"
            f"{gigabytes / statistics.median(cpu[name]):10.2f}"
            f"{median / memcpy:10.1f}{peaks[name] / 1e6:9.1f}"
        )


def make_contestants(weight: Any, block: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; everything they need is made here."""
    symmetric, asymmetric = BlockFormat(4, block), BlockFormat(4, block, symmetric=False)
    eight = BlockFormat(8, block)
    narrow = weight.astype(ml_dtypes.bfloat16)
    target = np.empty_like(weight)
    contestants: dict[str, Callable[[], object]] = {"memcpy": lambda: np.copyto(target, weight)}
    for threads in (1, 2):
        for label, array, form in (
            ("int4 symmetric, float32", weight, symmetric),
            ("int4 asymmetric, float32", weight, asymmetric),
            ("int8 symmetric, float32", weight, eight),
            ("int4 symmetric, bfloat16", narrow, symmetric),
            ("int4 asymmetric, bfloat16", narrow, asymmetric),
        ):
            contestants[f"quantize_parallel {threads}: {label}"] = partial(
                quantize_parallel, array, form, threads=threads
            )
    contestants["plain numpy: quantize, int4 symmetric"] = lambda: quantize(weight, symmetric)
    contestants["ONNX Runtime: quantize_matmul_4bits"] = runtime_kernel(weight, block)
    contestants["ONNX Runtime: MatMulNBitsQuantizer"] = runtime_quantizer(weight, block)
    return contestants


def runtime_kernel(weight: Any, block: int) -> Callable[[], object]:
    """ONNX Runtime's own loop, given the transpose [K, N] it wants and memory to write to."""
    n, k = weight.shape
    count = -(-k // block)
    transpose = np.ascontiguousarray(weight.T)
    packed, scales = np.zeros((n, count, block // 2), np.uint8), np.zeros(n * count, np.float32)
    zeros = np.zeros(n * -(-count // 2), np.uint8)
    return lambda: _pybind_state.quantize_matmul_4bits(
        packed, transpose, scales, zeros, block, n, k, True
    )


def runtime_quantizer(weight: Any, block: int) -> Callable[[], object]:
    """ONNX Runtime's quantizer with its default algorithm, on a model of one MatMul."""
    n, k = weight.shape
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [value("x", onnx.TensorProto.FLOAT, [1, k])],
        [value("y", onnx.TensorProto.FLOAT, [1, n])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])

    def run() -> None:
        # process() replaces nodes of the model it is given, not the weight.
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        MatMulNBitsQuantizer(copy, block_size=block, is_symmetric=True).process()

    return run


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak of the memory NumPy and Python allocate during the second of two calls.

    Scratch that a thread keeps for its next call counts, because every call here makes threads.
    """
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
