"""What other tools make of a matrix in 4 bits: their own code, unpacked to float32.

Each function takes a weight [N, K] and returns the weight as its tool's runtime would multiply
with it, and the bytes that codes, scales and zero points take in the tool's own format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import matmul_nbits_quantizer as quantizer
from onnxruntime.quantization.neural_compressor import weight_only

Peer = Callable[[Any], tuple[Any, int]]


def through_matmul_nbits(config: Callable[[], Any], weight: Any) -> tuple[Any, int]:
    """onnxruntime's `MatMulNBitsQuantizer` on one MatMul, multiplied out by its own kernel."""
    logging.getLogger(quantizer.__name__).setLevel(logging.WARNING)
    rows, columns = weight.shape
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "matmul",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["s", columns])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["s", rows])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    work = quantizer.MatMulNBitsQuantizer(model, algo_config=config())
    work.process()
    made = work.model.model
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"]).run
    unpacked = run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T
    nbytes = sum(onnx.numpy_helper.to_array(t).nbytes for t in made.graph.initializer)
    return np.ascontiguousarray(unpacked), nbytes


def k_quant(block: int, weight: Any) -> tuple[Any, int]:
    """onnxruntime's `k_quant`. Its writer fails where a row has an odd number of blocks, so this
    calls the quantizer beneath it."""
    codes, scale, zero = weight_only.quant_tensor_k_quant_cpu(weight, 4, block)
    unpacked = ((codes - zero) * scale).astype(np.float32).reshape(weight.shape)
    return unpacked, weight.size // 2 + scale.size * 4 + scale.size // 2


def q4_0(weight: Any) -> tuple[Any, int]:
    """llama.cpp's Q4_0: blocks of 32, float16 scales."""
    import gguf

    packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0), packed.nbytes


def rounding(block: int, symmetric: bool) -> Any:
    return quantizer.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric)


def hqq(block: int) -> Any:
    return quantizer.HQQWeightOnlyQuantConfig(block_size=block)


PEERS: dict[str, Peer] = {
    "onnxruntime RTN, sym b32": partial(through_matmul_nbits, partial(rounding, 32, True)),
    "onnxruntime RTN, asym b32": partial(through_matmul_nbits, partial(rounding, 32, False)),
    "onnxruntime k_quant, b32": partial(k_quant, 32),
    "onnxruntime HQQ, b32": partial(through_matmul_nbits, partial(hqq, 32)),
    "onnxruntime HQQ, b64": partial(through_matmul_nbits, partial(hqq, 64)),
    "llama.cpp Q4_0": q4_0,
}
