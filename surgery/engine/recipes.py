"""Which passes, in which order, for which graph: visible tuples.

Each step names a pass, how many sites it must find, and when it applies. A recipe reads from top
to bottom; `python -m surgery --list` prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from surgery.engine.facts import Facts
from surgery.passes.attention.group_query_attention import GroupQueryAttention
from surgery.passes.attention.packed_attention import PackedAttention
from surgery.passes.attention.qkv_split import QkvSplit
from surgery.passes.mlp.mixture_of_experts import MixtureOfExperts
from surgery.passes.mlp.silu import Silu
from surgery.passes.norms.rms_norm import RmsNorm
from surgery.passes.norms.skip_layer_norm import SkipLayerNorm
from surgery.passes.norms.skip_rms_norm import SkipRmsNorm
from surgery.passes.outputs.hidden_states import HiddenStates
from surgery.passes.outputs.last_logits import LastLogits
from surgery.passes.quantized.gather_nbits import GatherNBits
from surgery.passes.quantized.matmul_nbits import MatMulNBits
from surgery.passes.quantized.mixture_of_experts_nbits import MixtureOfExpertsNBits
from surgery.passes.rotary.freq_table import FreqTable
from surgery.passes.rotary.late_repeat import LateRepeat
from surgery.passes.rotary.multimodal_rotary import MultimodalRotary
from surgery.passes.rotary.rotary import Rotary
from surgery.passes.tidy.dims import Dims
from surgery.passes.tidy.fold import Fold
from surgery.passes.tidy.noop import Noop
from surgery.passes.tidy.opset import Opset
from surgery.passes.tidy.reshape_chain import ReshapeChain
from surgery.passes.tidy.static_reshape import StaticReshape
from surgery.passes.vision.deepstack import DeepStack
from surgery.passes.vision.feature_concat import FeatureConcat
from surgery.passes.vision.feature_gather import FeatureGather
from surgery.passes.vision.fixed_grid import FixedGrid
from surgery.passes.vision.patch_embed import PatchEmbed
from surgery.passes.weights.fused_transpose import FusedTranspose
from surgery.passes.weights.half import F16, F32, Half
from surgery.passes.weights.late_cast import LateCast
from surgery.passes.weights.table_cast import TableCast
from surgery.passes.weights.weight_cast import WeightCast
from surgery.passes.weights.weight_transpose import WeightTranspose
from surgery.rewrite.contract import Pass


@dataclass(frozen=True)
class Step:
    """A pass in a recipe.

    Attributes:
        make: builds the pass from the facts of the run.
        expect: sites that it must find, exactly; None where any number is right.
        when: whether the step belongs to this run.
    """

    make: Callable[[Facts], Pass]
    expect: Callable[[Facts], int] | None = None
    when: Callable[[Facts], bool] = lambda f: True


Recipe = tuple[Step, ...]

VISION: Recipe = (
    Step(lambda f: Dims({f"floor(patches/{f.merge**2})": "tokens"})),
    Step(lambda f: Fold()),
    Step(lambda f: Noop()),
    Step(lambda f: WeightCast()),
    Step(lambda f: LateRepeat(), lambda f: 2, lambda f: f.family.windows),
    Step(lambda f: FixedGrid(f.fixed_grid), when=lambda f: f.grid is not None),
    Step(lambda f: StaticReshape()),
    Step(lambda f: PatchEmbed(), lambda f: 1),
    Step(lambda f: RmsNorm(f.target.rms_norm), lambda f: 2 * f.depth + 1, lambda f: f.rms_tower),
    Step(lambda f: Dims(), when=lambda f: f.rms_tower),
    Step(lambda f: FreqTable(f.grid_side), lambda f: 2),
    Step(lambda f: QkvSplit(), lambda f: f.depth),
    Step(lambda f: Rotary(), lambda f: 2 * f.depth),
    Step(lambda f: PackedAttention(), lambda f: f.depth),
    Step(lambda f: FeatureConcat(), lambda f: 1, lambda f: f.levels > 0),
    Step(lambda f: Silu(), lambda f: f.gates, lambda f: f.gates > 0),
    Step(lambda f: SkipLayerNorm(), lambda f: 2 * f.depth, lambda f: not f.rms_tower),
    Step(lambda f: SkipRmsNorm(), lambda f: 2 * f.depth, lambda f: f.rms_tower),
    Step(lambda f: Fold()),
    Step(lambda f: ReshapeChain()),
    Step(lambda f: LateCast(), when=lambda f: f.late_cast),
    Step(lambda f: Half(f.half_op), when=lambda f: f.vision_dtype == F16),
    Step(lambda f: Opset(f.target.opset), when=lambda f: f.target.opset < 23),
)

EMBEDDING: Recipe = (
    Step(lambda f: Dims()),
    Step(lambda f: Fold()),
    Step(lambda f: Noop()),
    Step(lambda f: FeatureGather(f.levels), lambda f: 1),
    Step(lambda f: GatherNBits(f.format), lambda f: 1, lambda f: f.quantized_table),
    Step(lambda f: TableCast(), when=lambda f: f.shares_table and not f.quantized),
    Step(lambda f: Fold()),
    Step(lambda f: Opset(f.target.opset), when=lambda f: f.target.opset < 23),
)

DECODER: Recipe = (
    Step(lambda f: Dims({"past + sequence": "total"})),
    Step(lambda f: Fold()),
    Step(lambda f: Noop()),
    Step(lambda f: WeightCast()),
    Step(lambda f: StaticReshape()),
    Step(lambda f: RmsNorm(f.target.rms_norm), lambda f: f.family.norms * f.layers + 1),
    Step(lambda f: FreqTable(f.options.max_length), lambda f: 2),
    Step(
        lambda f: MultimodalRotary(f.target.runs("MRotaryEmbedding", F32)), lambda f: 2 * f.layers
    ),
    Step(lambda f: GroupQueryAttention(), lambda f: f.layers),
    Step(lambda f: DeepStack(), lambda f: min(f.levels, f.layers), lambda f: f.levels > 0),
    Step(lambda f: SkipRmsNorm(), lambda f: 2 * f.layers),
    Step(lambda f: MixtureOfExperts(), lambda f: f.fused_experts, lambda f: f.fused_experts > 0),
    Step(
        lambda f: Silu(),
        lambda f: f.layers - f.fused_experts if f.text["hidden_act"] == "silu" else 0,
    ),
    Step(lambda f: HiddenStates(), lambda f: 1, lambda f: f.options.hidden_states),
    Step(lambda f: LastLogits(), lambda f: 1),
    Step(
        lambda f: MatMulNBits(f.format, f.target.accuracy_level, f.text_dtype),
        lambda f: 7 * f.layers - 3 * f.experts + 1,
        lambda f: f.quantized,
    ),
    Step(
        lambda f: MixtureOfExpertsNBits(f.format, f.target.accuracy_level, f.text_dtype),
        lambda f: f.fused_experts,
        lambda f: f.quantized_experts,
    ),
    Step(
        lambda f: FusedTranspose(f.is_head),
        lambda f: 1,
        lambda f: f.shares_table and not f.quantized,
    ),
    Step(lambda f: WeightTranspose()),
    Step(lambda f: Fold()),
    Step(lambda f: ReshapeChain()),
    Step(lambda f: Half(f.half_op), when=lambda f: f.text_dtype == F16),
    Step(lambda f: Opset(f.target.opset), when=lambda f: f.target.opset < 23),
)

RECIPES: dict[str, Recipe] = {"vision": VISION, "embedding": EMBEDDING, "decoder": DECODER}
