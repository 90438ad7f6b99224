"""A mixture of experts without a loop, put into transformers' public experts registry.

transformers' own forms go over the experts that were chosen, or sort tokens by expert: shapes that
depend on data, which no graph can hold. Here every expert works on every token, and the router's
scores, zero for the experts not chosen, weigh what they say.

    bytes and operations for T tokens, k of E experts, weights of w bytes an expert:
                            weights read       products         largest activation
    every expert            E * w              E * T            E * T * 2I
    chosen weights, picked  k * T * w, copied  k * T            k * T * w
    a fused MoE op          min(E, k * T) * w  k * T            k * T * 2I

With 128 experts of which 8 are active, the first does 16 times the work of the last whatever T is.
The second would be as good for one token; but for 500 tokens of a 30B-A3B it would copy 75 GB of
float32 weights a layer where the first holds 0.4 GB of activations. So the first is the form that
always runs, and `surgery` fuses it where a provider has the op.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EVERY = "every_expert"


def every_expert(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Two products for all experts at once, exact up to the order of sums.

    The scores go to the upward half before it meets the gate: an expert that was not chosen then
    multiplies finite numbers by zero, where its product might overflow float16. The second product
    sums over experts too, so no expert's output is ever stored.

    Args:
        module: gate_up_proj `[E, 2I, H]`, gate first, and down_proj `[E, H, I]`.
        hidden_states: `[T, H]`.
        top_k_index: `[T, k]`, the experts of each token.
        top_k_weights: `[T, k]`, their scores.

    Returns:
        `[T, H]`.
    """
    scores = hidden_states.new_zeros(hidden_states.shape[0], module.num_experts)
    scores = scores.scatter(1, top_k_index, top_k_weights)
    both = hidden_states[None] @ module.gate_up_proj.transpose(1, 2)
    gate, up = both[..., : module.intermediate_dim], both[..., module.intermediate_dim :]
    inner = module.act_fn(gate) * (up * scores.transpose(0, 1)[..., None])
    down = module.down_proj.transpose(1, 2)
    out: torch.Tensor = inner.transpose(0, 1).flatten(1) @ down.flatten(0, 1)
    return out


def register() -> None:
    """Make the name known to transformers. Calling it again changes nothing."""
    ALL_EXPERTS_FUNCTIONS.register(EVERY, every_expert)
