"""Recipes for graphs of other exporters: no pass has to find anything."""

from __future__ import annotations

from surgery.engine.options import Settings
from surgery.engine.step import Recipe, Step
from surgery.engine.targets import F16, F32
from surgery.engine.upgrade import OPSET
from surgery.passes import (
    Attention,
    AttentionBias,
    AttentionHeads,
    BiasGelu,
    Dims,
    FixedCache,
    Fold,
    FoldedAttention,
    FreqTable,
    GatherNBits,
    Gelu,
    GroupQueryAttention,
    Half,
    HalfAngles,
    HeadNorm,
    LastLogits,
    LateRepeat,
    LayerNorm,
    LayerScale,
    Lengths,
    LongInput,
    MatMulInt8,
    MatMulNBits,
    MultiHeadAttention,
    MultimodalRotary,
    Noop,
    Opset,
    PackedAttention,
    PatchEmbed,
    PlainAttention,
    PlainLinear,
    QkvSplit,
    ReshapeChain,
    RightWeight,
    RmsNorm,
    Rotary,
    RotaryRows,
    RowGuard,
    Shapes,
    Shortlist,
    Silu,
    SkipBias,
    SkipLayerNorm,
    SkipRmsNorm,
    Slices,
    StaticReshape,
    WeightCast,
    WeightShift,
    WeightTranspose,
    ZeroBias,
)

TIDY: Recipe[Settings] = (
    Step(Shapes),
    Step(Dims, lambda f: {"aliases": {"past + sequence": "total"}}),
    Step(Fold),
    Step(Shapes),
    Step(Dims, lambda f: {"aliases": {"past + sequence": "total"}}),
    Step(Noop, lambda f: {"reshapes": True}),
    Step(WeightCast),
    Step(StaticReshape),
    Step(Lengths),
    Step(ZeroBias),
)
"""Brings a graph into the form that the other passes match."""

NORMS: Recipe[Settings] = (
    Step(WeightShift),
    Step(LayerNorm),
    Step(RmsNorm, lambda f: {"op": f.target.rms_norm}),
    Step(HeadNorm),
    Step(Dims),
)

ROTARY: Recipe[Settings] = (
    Step(HalfAngles),
    Step(LateRepeat),
    Step(FreqTable, lambda f: {"rows": f.options.max_length}),
    Step(MultimodalRotary, lambda f: {"fused": f.target.runs("MRotaryEmbedding", F32)}),
    Step(Rotary),
    Step(RotaryRows),
    Step(HeadNorm),
)

MLP: Recipe[Settings] = (
    Step(Gelu),
    Step(Silu),
    Step(LayerScale),
    Step(SkipLayerNorm),
    Step(SkipRmsNorm),
    Step(SkipBias, when=lambda f: f.text_dtype == F32),
    Step(BiasGelu, when=lambda f: f.text_dtype == F32),
)

WEIGHTS: Recipe[Settings] = (
    Step(PlainAttention, when=lambda f: f.target.opset < OPSET),
    Step(RightWeight, when=lambda f: f.quantized),
    Step(PlainLinear, when=lambda f: f.quantized),
    Step(
        LongInput, lambda f: {"wanted": f.planned}, expect=1, when=lambda f: f.options.own_prefill
    ),
    Step(
        MatMulInt8,
        lambda f: {"wanted": f.for_long_inputs},
        when=lambda f: f.options.own_prefill,
    ),
    Step(
        MatMulNBits,
        lambda f: {
            "policy": f.format,
            "planner": f.plan_weights,
            "accuracy_level": f.target.accuracy_level,
            "scales": f.text_dtype,
        },
        when=lambda f: f.quantized,
    ),
    Step(
        Shortlist,
        lambda f: {"tokens": f.options.shortlist, "wanted": f.is_head},
        when=lambda f: f.shortlisted,
    ),
    Step(
        GatherNBits,
        lambda f: {"policy": f.table_format},
        when=lambda f: f.quantized_tables,
    ),
    Step(WeightTranspose),
    Step(Fold),
    Step(ReshapeChain),
    Step(Half, lambda f: {"runs": f.half_op}, when=lambda f: f.text_dtype == F16),
    Step(Opset, lambda f: {"version": f.target.opset}, when=lambda f: f.target.opset < OPSET),
)

DECODER: Recipe[Settings] = (
    *TIDY,
    Step(Slices),
    *NORMS,
    *ROTARY,
    Step(FoldedAttention),
    Step(Attention),
    Step(RowGuard),
    Step(AttentionHeads),
    Step(FixedCache, lambda f: {"refuse_left": True}),
    Step(GroupQueryAttention, lambda f: {"refuse_left": True}),
    Step(MultiHeadAttention),
    *MLP,
    Step(LastLogits),
    *WEIGHTS,
)

VISION: Recipe[Settings] = (
    *TIDY,
    Step(PatchEmbed),
    Step(QkvSplit),
    Step(Slices),
    *NORMS,
    *ROTARY,
    Step(FoldedAttention),
    Step(Attention),
    Step(RowGuard),
    Step(PackedAttention),  # before attention_heads, which writes heads without a batch anew
    Step(AttentionHeads),
    Step(MultiHeadAttention),
    Step(AttentionBias, when=lambda f: f.text_dtype == F32),
    *MLP,
    *WEIGHTS,
)

ANY: Recipe[Settings] = (
    *TIDY,
    Step(PatchEmbed),
    Step(QkvSplit),
    Step(Slices),
    *NORMS,
    *ROTARY,
    Step(FoldedAttention),
    Step(Attention),
    Step(RowGuard),
    Step(PackedAttention),  # before attention_heads, which writes heads without a batch anew
    Step(AttentionHeads),
    Step(FixedCache, lambda f: {"refuse_left": True}),
    Step(GroupQueryAttention, lambda f: {"refuse_left": True}),
    Step(MultiHeadAttention),
    Step(AttentionBias, when=lambda f: f.text_dtype == F32),
    *MLP,
    *WEIGHTS,
)

GENERIC: dict[str, Recipe[Settings]] = {"decoder": DECODER, "vision": VISION, "any": ANY}
