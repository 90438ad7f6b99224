"""The recipes of Qwen-VL checkpoints: one for each graph of a raw export.

Each step names a pass, how many sites it must find, and when it applies. A recipe reads from top
to bottom; `python -m surgery --list` prints it.
"""

from __future__ import annotations

from surgery.engine.facts import Facts
from surgery.engine.step import Recipe, Step
from surgery.engine.targets import F16, F32
from surgery.passes import (
    DeepStack,
    Dims,
    FeatureConcat,
    FeatureGather,
    FixedGrid,
    Fold,
    FreqTable,
    FusedTranspose,
    GatherNBits,
    GroupQueryAttention,
    Half,
    HiddenStates,
    InputNames,
    JoinedEmbeds,
    LastLogits,
    LateCast,
    LateRepeat,
    LongInput,
    MatMulInt8,
    MatMulNBits,
    MixtureOfExperts,
    MixtureOfExpertsNBits,
    MultimodalRotary,
    Noop,
    Opset,
    PackedAttention,
    PatchEmbed,
    PlainLinear,
    PlainLookup,
    PositionLimit,
    QkvSplit,
    QuantizedCache,
    ReshapeChain,
    RmsNorm,
    Rotary,
    Shortlist,
    Silu,
    SkipBias,
    SkipLayerNorm,
    SkipRmsNorm,
    StaticReshape,
    TableCast,
    TokenEmbeds,
    WeightCast,
    WeightTranspose,
)

VISION: Recipe[Facts] = (
    Step(Dims, lambda f: {"aliases": {f"floor(patches/{f.merge**2})": "tokens"}}),
    Step(Fold),
    Step(Noop),
    Step(WeightCast),
    Step(TableCast, when=lambda f: f.browser),
    Step(LateRepeat, expect=2, when=lambda f: f.traits.windows),
    Step(FixedGrid, lambda f: {"grid": f.fixed_grid}, when=lambda f: f.grid is not None),
    Step(StaticReshape),
    Step(PatchEmbed, expect=1),
    Step(
        RmsNorm,
        lambda f: {"op": f.target.rms_norm},
        expect=lambda f: 2 * f.depth + 1,
        when=lambda f: f.rms_tower,
    ),
    Step(Dims, when=lambda f: f.rms_tower),
    Step(FreqTable, lambda f: {"rows": f.grid_side}, expect=2),
    Step(QkvSplit, expect=lambda f: f.depth),
    Step(Rotary, expect=lambda f: 2 * f.depth),
    Step(PackedAttention, expect=lambda f: f.depth),
    Step(FeatureConcat, expect=1, when=lambda f: f.levels > 0),
    Step(Silu, expect=lambda f: f.gates, when=lambda f: f.gates > 0),
    Step(
        SkipLayerNorm,
        expect=lambda f: 2 * f.depth,
        when=lambda f: f.fused_skips and not f.rms_tower,
    ),
    Step(SkipRmsNorm, expect=lambda f: 2 * f.depth, when=lambda f: f.fused_skips and f.rms_tower),
    Step(PlainLinear, lambda f: {"wanted": f.quantized_in_tower}, when=lambda f: f.quantized_tower),
    Step(
        MatMulNBits,
        lambda f: {
            "policy": lambda name: None,
            "planner": f.plan_tower,
            "accuracy_level": f.target.accuracy_level,
        },
        expect=lambda f: None if f.options.keep else f.tower_weights,
        when=lambda f: f.quantized_tower and not f.integer_tower,
    ),
    Step(
        MatMulInt8,
        lambda f: {"wanted": f.quantized_in_tower, "planner": f.plan_tower},
        expect=lambda f: None if f.options.keep else f.tower_weights,
        when=lambda f: f.integer_tower,
    ),
    # DirectML's product takes no bias itself
    Step(SkipBias, when=lambda f: f.fused_skips and f.quantized_tower),
    Step(Fold),
    Step(ReshapeChain),
    Step(LateCast, when=lambda f: f.late_cast),
    Step(Half, lambda f: {"runs": f.half_op}, when=lambda f: f.vision_dtype == F16),
    Step(Opset, lambda f: {"version": f.target.opset}, when=lambda f: f.target.opset < 23),
    Step(
        InputNames,
        lambda f: {"names": {"image_grid_thw": f.traits.grid_input}},
        expect=1,
        when=lambda f: f.browser and f.traits.grid_input != "image_grid_thw",
    ),
)

EMBEDDING: Recipe[Facts] = (
    Step(Dims),
    Step(Fold),
    Step(Noop),
    Step(FeatureGather, lambda f: {"levels": f.levels}, expect=1, when=lambda f: not f.browser),
    Step(TokenEmbeds, lambda f: {"levels": f.levels}, expect=1, when=lambda f: f.browser),
    Step(
        GatherNBits,
        lambda f: {"policy": f.table_format},
        expect=1,
        when=lambda f: f.quantized_table,
    ),
    Step(PlainLookup, expect=1, when=lambda f: f.quantized_table and f.browser),
    Step(TableCast, when=lambda f: f.wide_table),
    Step(Fold),
    Step(Opset, lambda f: {"version": f.target.opset}, when=lambda f: f.target.opset < 23),
    Step(Dims, lambda f: {"aliases": {"batch": "batch_size"}}, when=lambda f: f.browser),
)

DECODER: Recipe[Facts] = (
    Step(Dims, lambda f: {"aliases": {"past + sequence": "total"}}),
    Step(Fold),
    Step(Noop),
    Step(WeightCast),
    Step(StaticReshape),
    Step(
        RmsNorm, lambda f: {"op": f.target.rms_norm}, expect=lambda f: f.traits.norms * f.layers + 1
    ),
    Step(FreqTable, lambda f: {"rows": f.options.max_length}, expect=2),
    Step(
        MultimodalRotary,
        lambda f: {"fused": f.target.runs("MRotaryEmbedding", F32)},
        expect=lambda f: 2 * f.layers,
    ),
    Step(GroupQueryAttention, expect=lambda f: f.layers),
    Step(DeepStack, expect=lambda f: min(f.levels, f.layers), when=lambda f: f.levels > 0),
    Step(JoinedEmbeds, expect=1, when=lambda f: f.browser and f.levels > 0),
    Step(PositionLimit, expect=1, when=lambda f: f.browser),
    Step(SkipRmsNorm, expect=lambda f: 2 * f.layers),
    Step(MixtureOfExperts, expect=lambda f: f.fused_experts, when=lambda f: f.fused_experts > 0),
    Step(
        Silu, expect=lambda f: f.layers - f.fused_experts if f.text["hidden_act"] == "silu" else 0
    ),
    Step(HiddenStates, expect=1, when=lambda f: f.options.hidden_states),
    Step(LastLogits, expect=1),
    Step(
        QuantizedCache,
        lambda f: {"ranges": f.cache_ranges or {}},
        expect=lambda f: f.layers,
        when=lambda f: f.options.quantized_cache,
    ),
    Step(
        LongInput, lambda f: {"wanted": f.planned}, expect=1, when=lambda f: f.options.own_prefill
    ),
    Step(
        MatMulInt8,
        lambda f: {"wanted": f.for_long_inputs},
        expect=lambda f: None if f.options.keep else 7 * f.layers,
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
        expect=lambda f: None if f.options.keep else 7 * f.layers - 3 * f.experts + 1,
        when=lambda f: f.quantized,
    ),
    Step(
        Shortlist,
        lambda f: {"tokens": f.options.shortlist, "wanted": f.is_head},
        expect=1,
        when=lambda f: f.shortlisted,
    ),
    Step(
        MixtureOfExpertsNBits,
        lambda f: {
            "policy": lambda name: f.expert_format,
            "planner": None if f.plan is None else lambda model: f.plan,
            "accuracy_level": f.target.accuracy_level,
            "scales": f.text_dtype,
        },
        expect=lambda f: f.fused_experts,
        when=lambda f: f.quantized_experts,
    ),
    Step(
        FusedTranspose,
        lambda f: {"shared": f.is_head},
        expect=1,
        when=lambda f: f.shares_table and not f.quantized,
    ),
    Step(WeightTranspose),
    Step(Fold),
    Step(ReshapeChain),
    Step(Half, lambda f: {"runs": f.half_op}, when=lambda f: f.text_dtype == F16),
    Step(Opset, lambda f: {"version": f.target.opset}, when=lambda f: f.target.opset < 23),
    Step(Dims, lambda f: {"aliases": {"batch": "batch_size"}}, when=lambda f: f.browser),
)

RECIPES: dict[str, Recipe[Facts]] = {"vision": VISION, "embedding": EMBEDDING, "decoder": DECODER}
