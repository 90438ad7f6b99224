"""Recipes for graphs that nobody made recipes for: every pass where it finds something to do."""

from __future__ import annotations

from surgery.passes.dims import Dims
from surgery.passes.fold import Fold
from surgery.passes.freq_table import FreqTable
from surgery.passes.gelu import Gelu
from surgery.passes.gqa import Gqa
from surgery.passes.half import Half
from surgery.passes.half_angles import HalfAngles
from surgery.passes.head_norm import HeadNorm
from surgery.passes.last_logits import LastLogits
from surgery.passes.late_repeat import LateRepeat
from surgery.passes.layer_norm import LayerNorm
from surgery.passes.layer_scale import LayerScale
from surgery.passes.matmul_nbits import MatMulNBits
from surgery.passes.mha import Mha
from surgery.passes.mrope import MRope
from surgery.passes.noop import Noop
from surgery.passes.opset import Opset
from surgery.passes.packed_attention import PackedAttention
from surgery.passes.patch_embed import PatchEmbed
from surgery.passes.plain_attention import PlainAttention
from surgery.passes.qkv_split import QkvSplit
from surgery.passes.reshape import ReshapeChain
from surgery.passes.rms_norm import RmsNorm
from surgery.passes.rotary import Rotary
from surgery.passes.sdpa import Sdpa
from surgery.passes.silu import Silu
from surgery.passes.skip_layer_norm import SkipLayerNorm
from surgery.passes.skip_rms_norm import SkipRmsNorm
from surgery.passes.slices import Slices
from surgery.passes.static_reshape import StaticReshape
from surgery.passes.weight_cast import WeightCast
from surgery.passes.weight_shift import WeightShift
from surgery.passes.weight_transpose import WeightTranspose
from surgery.passes.zero_bias import ZeroBias
from surgery.recipes import Recipe, Step
from surgery.targets import F16, F32
from surgery.upgrade import OPSET

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
    Step(lambda f: MRope(f.target.runs("MRotaryEmbedding", F32))),
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
    Step(lambda f: Sdpa()),
    Step(lambda f: Gqa()),
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
    Step(lambda f: Sdpa()),
    Step(lambda f: PackedAttention()),
    Step(lambda f: Mha()),
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
    Step(lambda f: Sdpa()),
    Step(lambda f: Gqa()),
    Step(lambda f: PackedAttention()),
    Step(lambda f: Mha()),
    *MLP,
    *WEIGHTS,
)

GENERIC: dict[str, Recipe] = {"decoder": DECODER, "vision": VISION, "any": ANY}
