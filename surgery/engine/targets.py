"""What each execution provider can run, in one frozen table.

Read from the kernels that onnxruntime registers (docs/OperatorKernels.md of its repository, and
the symbols of the shipped provider libraries). Recipes do not emit an op in a dtype that is not
listed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
BOTH = frozenset({F32, F16})
EVERY_PART = frozenset({"vision", "embedding", "decoder"})


@dataclass(frozen=True)
class Target:
    """An execution provider.

    Attributes:
        name: the name on the command line.
        provider: onnxruntime's name.
        options: entry of `provider_options` in genai_config.json; None for the CPU.
        compute: dtype of the activations around quantized weights.
        accuracy_level: attribute of `MatMulNBits`.
        opset: newest opset of ONNX's own ops that the kernels are registered for.
        rms_norm: the op for RMS normalization.
        ops: dtypes of the activations that each fused op takes here.
        parts: graphs of a package that run here; the others run on a CPU.
        odd_zero_points: whether a lookup in a table of 4 bits with zero points takes rows of an odd
            number of blocks, whose last zero point has a byte for itself.
    """

    name: str
    provider: str
    options: Mapping[str, Any] | None
    compute: ir.DataType
    accuracy_level: int
    opset: int
    rms_norm: str
    ops: Mapping[str, frozenset[ir.DataType]]
    parts: frozenset[str] = EVERY_PART
    odd_zero_points: bool = True

    def runs(self, op: str, dtype: ir.DataType) -> bool:
        """Whether the provider has a kernel for an op on a dtype."""
        return dtype in self.ops.get(op, frozenset())


EVERYWHERE = MappingProxyType(
    dict.fromkeys(
        (
            *("RotaryEmbedding", "MatMul", "Gemm", "Gelu", "MatMulNBits"),
            *("SkipSimplifiedLayerNormalization", "SkipLayerNormalization"),
        ),
        BOTH,
    )
)
"""Ops that every provider runs in both dtypes."""

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "cpu": Target(
            name="cpu",
            provider="CPUExecutionProvider",
            options=None,
            compute=F32,
            accuracy_level=4,  # int8 products: 2.5 times faster than float32 ones
            opset=23,
            rms_norm="RMSNormalization",
            ops=EVERYWHERE
            | {
                "MRotaryEmbedding": BOTH,
                "GroupQueryAttention": BOTH,
                "MultiHeadAttention": frozenset({F32}),
                "RMSNormalization": BOTH,
                "QuickGelu": frozenset({F32}),
                "MoE": BOTH,
                "QMoE": BOTH,
                "GatherBlockQuantized": BOTH,
                "MatMulIntegerToFloat": frozenset({F32}),
                "FusedMatMul": BOTH,
            },
        ),
        "cuda": Target(
            name="cuda",
            provider="CUDAExecutionProvider",
            options=MappingProxyType({"cuda": {}}),
            compute=F16,
            accuracy_level=0,
            opset=23,
            rms_norm="SimplifiedLayerNormalization",
            ops=EVERYWHERE
            | {
                "MRotaryEmbedding": BOTH,
                "GroupQueryAttention": frozenset({F16}),
                "MultiHeadAttention": BOTH,
                "QuickGelu": BOTH,
                "MoE": BOTH,
                "QMoE": frozenset({F16}),
                "GatherBlockQuantized": BOTH,
                "FusedMatMul": BOTH,
            },
        ),
        "dml": Target(
            name="dml",
            provider="DmlExecutionProvider",
            options=MappingProxyType({"dml": {}}),
            compute=F16,
            accuracy_level=0,
            opset=21,
            rms_norm="SimplifiedLayerNormalization",
            ops=EVERYWHERE
            | {
                "GroupQueryAttention": BOTH,
                "MultiHeadAttention": BOTH,
                "QuickGelu": BOTH,
                "FusedMatMul": BOTH,
            },
        ),
        "webgpu": Target(
            name="webgpu",
            provider="WebGpuExecutionProvider",
            options=MappingProxyType({"webgpu": {}}),
            compute=F32,  # not every adapter computes in float16
            accuracy_level=4,
            opset=21,  # no kernel for the Attention of opset 23
            rms_norm="SimplifiedLayerNormalization",
            # no FusedMatMul; no MoE, and QMoE without zero points alone
            ops=EVERYWHERE
            | {
                "MRotaryEmbedding": BOTH,
                "GroupQueryAttention": BOTH,
                "MultiHeadAttention": BOTH,
                "QuickGelu": BOTH,
                "GatherBlockQuantized": BOTH,
            },
            # Shapes are computed in int64, and attention loops over segments in a sequence: both
            # run on a CPU. The runtime cuts the pictures of a call apart in the CPU's memory.
            parts=frozenset({"decoder"}),
            odd_zero_points=False,
        ),
    }
)

BROWSER = Target(
    name="transformers.js",
    provider="CPUExecutionProvider",
    options=None,
    compute=F32,
    accuracy_level=4,
    opset=21,
    rms_norm="SimplifiedLayerNormalization",
    ops=EVERYWHERE
    | {
        "MRotaryEmbedding": BOTH,
        "GroupQueryAttention": BOTH,
        "MultiHeadAttention": frozenset({F32}),
        "QuickGelu": frozenset({F32}),
        "MoE": BOTH,
        "QMoE": BOTH,
    },
)
"""What transformers.js runs: onnxruntime-node, and the WebAssembly build of onnxruntime-web.

Unlike the CPU provider elsewhere, the build with asyncify that it loads in a browser has no
`GatherBlockQuantized`.
"""
