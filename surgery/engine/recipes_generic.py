"""Recipes for graphs that nobody made recipes for: every pass where it finds something to do."""

from __future__ import annotations

from surgery.engine.recipes import Recipe, Step
from surgery.engine.targets import F16, F32
from surgery.engine.upgrade import OPSET
from surgery.passes.attention.attention import Attention
from surgery.passes.attention.group_query_attention import GroupQueryAttention
from surgery.passes.attention.multi_head_attention import MultiHeadAttention
from surgery.passes.attention.packed_attention import PackedAttention
from surgery.passes.attention.plain_attention import PlainAttention
from surgery.passes.attention.qkv_split import QkvSplit
from surgery.passes.mlp.gelu import Gelu
from surgery.passes.mlp.layer_scale import LayerScale
from surgery.passes.mlp.silu import Silu
from surgery.passes.norms.head_norm import HeadNorm
from surgery.passes.norms.layer_norm import LayerNorm
from surgery.passes.norms.rms_norm import RmsNorm
from surgery.passes.norms.skip_layer_norm import SkipLayerNorm
from surgery.passes.norms.skip_rms_norm import SkipRmsNorm
from surgery.passes.outputs.last_logits import LastLogits
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.passes.rotary.freq_table import FreqTable
from surgery.passes.rotary.half_angles import HalfAngles
from surgery.passes.rotary.late_repeat import LateRepeat
from surgery.passes.rotary.multimodal_rotary import MultimodalRotary
from surgery.passes.rotary.rotary import Rotary
from surgery.passes.tidy.dims import Dims
from surgery.passes.tidy.fold import Fold
from surgery.passes.tidy.noop import Noop
from surgery.passes.tidy.opset import Opset
from surgery.passes.tidy.reshape_chain import ReshapeChain
from surgery.passes.tidy.slices import Slices
from surgery.passes.tidy.static_reshape import StaticReshape
from surgery.passes.vision.patch_embed import PatchEmbed
from surgery.passes.vision.zero_bias import ZeroBias
from surgery.passes.weights.half import Half
from surgery.passes.weights.weight_cast import WeightCast
from surgery.passes.weights.weight_shift import WeightShift
from surgery.passes.weights.weight_transpose import WeightTranspose

TIDY: Recipe = (
    Step(lambda f: Dims({"past + sequence": "total"})),
    Step(lambda f: Fold()),
    Step(lambda f: Dims({"past + sequence": "total"})),
    Step(lambda f: Noop()),
    Step(lambda f: WeightCast()),
    Step(lambda f: StaticReshape()),
    Step(lambda f: ZeroBias()),
)
"""What every other pass starts from."""

NORMS: Recipe = (
    Step(lambda f: WeightShift()),
    Step(lambda f: LayerNorm()),
    Step(lambda f: RmsNorm(f.target.rms_norm)),
    Step(lambda f: HeadNorm()),
    Step(lambda f: Dims()),
)

ROTARY: Recipe = (
    Step(lambda f: HalfAngles()),
    Step(lambda f: LateRepeat()),
    Step(lambda f: FreqTable(f.options.max_length)),
    Step(lambda f: MultimodalRotary(f.target.runs("MRotaryEmbedding", F32))),
    Step(lambda f: Rotary()),
    Step(lambda f: HeadNorm()),
)

MLP: Recipe = (
    Step(lambda f: Gelu()),
    Step(lambda f: Silu()),
    Step(lambda f: LayerScale()),
    Step(lambda f: SkipLayerNorm()),
    Step(lambda f: SkipRmsNorm()),
)

WEIGHTS: Recipe = (
    Step(lambda f: PlainAttention(), when=lambda f: f.target.opset < OPSET),
    Step(
        lambda f: MatMulNBits(f.format, f.target.accuracy_level, f.text_dtype),
        when=lambda f: f.quantized,
    ),
    Step(lambda f: WeightTranspose()),
    Step(lambda f: Fold()),
    Step(lambda f: ReshapeChain()),
    Step(lambda f: Half(f.half_op), when=lambda f: f.text_dtype == F16),
    Step(lambda f: Opset(f.target.opset), when=lambda f: f.target.opset < OPSET),
)

DECODER: Recipe = (
    *TIDY,
    Step(lambda f: Slices()),
    *NORMS,
    *ROTARY,
    Step(lambda f: Attention()),
    Step(lambda f: GroupQueryAttention()),
    *MLP,
    Step(lambda f: LastLogits()),
    *WEIGHTS,
)

VISION: Recipe = (
    *TIDY,
    Step(lambda f: PatchEmbed()),
    Step(lambda f: QkvSplit()),
    Step(lambda f: Slices()),
    *NORMS,
    *ROTARY,
    Step(lambda f: Attention()),
    Step(lambda f: PackedAttention()),
    Step(lambda f: MultiHeadAttention()),
    *MLP,
    *WEIGHTS,
)

ANY: Recipe = (
    *TIDY,
    Step(lambda f: PatchEmbed()),
    Step(lambda f: QkvSplit()),
    Step(lambda f: Slices()),
    *NORMS,
    *ROTARY,
    Step(lambda f: Attention()),
    Step(lambda f: GroupQueryAttention()),
    Step(lambda f: PackedAttention()),
    Step(lambda f: MultiHeadAttention()),
    *MLP,
    *WEIGHTS,
)

GENERIC: dict[str, Recipe] = {"decoder": DECODER, "vision": VISION, "any": ANY}
