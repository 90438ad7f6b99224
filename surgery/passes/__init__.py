"""The passes, one per file, in folders by subject; import them from here.

Run `TIDY` first on a graph that an exporter wrote: the other passes expect what it does. Pass
instances are not thread-safe: use one for each thread.
"""

from surgery.passes.attention.attention import Attention
from surgery.passes.attention.attention_bias import AttentionBias
from surgery.passes.attention.attention_heads import AttentionHeads
from surgery.passes.attention.fixed_cache import FixedCache
from surgery.passes.attention.folded_attention import FoldedAttention
from surgery.passes.attention.group_query_attention import GroupQueryAttention
from surgery.passes.attention.multi_head_attention import MultiHeadAttention
from surgery.passes.attention.packed_attention import PackedAttention
from surgery.passes.attention.plain_attention import PlainAttention
from surgery.passes.attention.qkv_split import QkvSplit
from surgery.passes.attention.quantized_cache import QuantizedCache
from surgery.passes.attention.row_guard import RowGuard
from surgery.passes.mlp.bias_gelu import BiasGelu
from surgery.passes.mlp.gelu import Gelu
from surgery.passes.mlp.layer_scale import LayerScale
from surgery.passes.mlp.mixture_of_experts import MixtureOfExperts
from surgery.passes.mlp.silu import Silu
from surgery.passes.norms.head_norm import HeadNorm
from surgery.passes.norms.layer_norm import LayerNorm
from surgery.passes.norms.rms_norm import RmsNorm
from surgery.passes.norms.skip_bias import SkipBias
from surgery.passes.norms.skip_layer_norm import SkipLayerNorm
from surgery.passes.norms.skip_rms_norm import SkipRmsNorm
from surgery.passes.outputs.hidden_states import HiddenStates
from surgery.passes.outputs.last_logits import LastLogits
from surgery.passes.outputs.shortlist import Shortlist
from surgery.passes.quantized.gather_nbits import GatherNBits
from surgery.passes.quantized.long_input import LongInput
from surgery.passes.quantized.matmul_int8 import MatMulInt8
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.passes.quantized.mixture_of_experts_nbits import MixtureOfExpertsNBits
from surgery.passes.quantized.plain_linear import PlainLinear
from surgery.passes.quantized.plain_lookup import PlainLookup
from surgery.passes.quantized.right_weight import RightWeight
from surgery.passes.rotary.freq_table import FreqTable
from surgery.passes.rotary.half_angles import HalfAngles
from surgery.passes.rotary.late_repeat import LateRepeat
from surgery.passes.rotary.multimodal_rotary import MultimodalRotary
from surgery.passes.rotary.position_limit import PositionLimit
from surgery.passes.rotary.rotary import Rotary
from surgery.passes.rotary.rotary_rows import RotaryRows
from surgery.passes.tidy.dims import Dims
from surgery.passes.tidy.fold import Fold
from surgery.passes.tidy.input_names import InputNames
from surgery.passes.tidy.lengths import Lengths
from surgery.passes.tidy.noop import Noop
from surgery.passes.tidy.opset import Opset
from surgery.passes.tidy.reshape_chain import ReshapeChain
from surgery.passes.tidy.shapes import Shapes
from surgery.passes.tidy.slices import Slices
from surgery.passes.tidy.static_reshape import StaticReshape
from surgery.passes.vision.deepstack import DeepStack
from surgery.passes.vision.feature_concat import FeatureConcat
from surgery.passes.vision.feature_gather import FeatureGather
from surgery.passes.vision.fixed_grid import FixedGrid
from surgery.passes.vision.joined_embeds import JoinedEmbeds
from surgery.passes.vision.patch_embed import PatchEmbed
from surgery.passes.vision.token_embeds import TokenEmbeds
from surgery.passes.vision.zero_bias import ZeroBias
from surgery.passes.weights.fused_transpose import FusedTranspose
from surgery.passes.weights.half import Half
from surgery.passes.weights.late_cast import LateCast
from surgery.passes.weights.table_cast import TableCast
from surgery.passes.weights.weight_cast import WeightCast
from surgery.passes.weights.weight_shift import WeightShift
from surgery.passes.weights.weight_transpose import WeightTranspose
from surgery.rewrite.contract import Pass

TIDY: tuple[Pass, ...] = (
    Shapes(),
    Dims({"past + sequence": "total"}),
    Fold(),
    Shapes(),
    Dims({"past + sequence": "total"}),
    Noop(reshapes=True),
    WeightCast(),
    StaticReshape(),
    Lengths(),
    ZeroBias(),
)
"""Brings a graph into the form that the other passes match."""

__all__ = [
    "TIDY",
    "Attention",
    "AttentionBias",
    "AttentionHeads",
    "BiasGelu",
    "DeepStack",
    "Dims",
    "FeatureConcat",
    "FeatureGather",
    "FixedCache",
    "FixedGrid",
    "Fold",
    "FoldedAttention",
    "FreqTable",
    "FusedTranspose",
    "GatherNBits",
    "Gelu",
    "GroupQueryAttention",
    "Half",
    "HalfAngles",
    "HeadNorm",
    "HiddenStates",
    "InputNames",
    "JoinedEmbeds",
    "LastLogits",
    "LateCast",
    "LateRepeat",
    "LayerNorm",
    "LayerScale",
    "Lengths",
    "LongInput",
    "MatMulInt8",
    "MatMulNBits",
    "MixtureOfExperts",
    "MixtureOfExpertsNBits",
    "MultiHeadAttention",
    "MultimodalRotary",
    "Noop",
    "Opset",
    "PackedAttention",
    "PatchEmbed",
    "PlainAttention",
    "PlainLinear",
    "PlainLookup",
    "PositionLimit",
    "QkvSplit",
    "QuantizedCache",
    "ReshapeChain",
    "RightWeight",
    "RmsNorm",
    "Rotary",
    "RotaryRows",
    "RowGuard",
    "Shapes",
    "Shortlist",
    "Silu",
    "SkipBias",
    "SkipLayerNorm",
    "SkipRmsNorm",
    "Slices",
    "StaticReshape",
    "TableCast",
    "TokenEmbeds",
    "WeightCast",
    "WeightShift",
    "WeightTranspose",
    "ZeroBias",
]
