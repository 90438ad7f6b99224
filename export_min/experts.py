"""A mixture of experts without a loop, registered with transformers.

The implementations in transformers loop over the chosen experts or sort the tokens by expert. Both
create shapes that depend on data, which torch.onnx cannot trace. Here every expert processes every
token, and the sum over experts is weighted by the router's scores, which are zero for the experts
that were not chosen.

Cost for T tokens and k of E experts, where the weights of an expert take w bytes and I is the width
inside an expert:

                               weights read         expert runs   largest activation
    every expert               E * w                E * T         E * T * 2I
    gather the chosen weights  k * T * w, copied    k * T         k * T * w
    a fused MoE op             min(E, k * T) * w    k * T         k * T * 2I

With 128 experts of which 8 are active, the first form does 16 times the work of the last for any T.
The second form would be as cheap as the last for one token. For 500 tokens of a 30B-A3B model,
however, it would copy 75 GB of float32 weights in each layer, where the first form needs 0.4 GB for
activations. The export therefore uses the first form, which runs everywhere, and `surgery` fuses it
into one op for the execution providers that have it.
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
    """Two matrix products over all experts, equal to the loop up to the order of summation.

    The scores multiply `up` before the gate does. For an expert that was not chosen, the product
    is then zero, while gate times `up` could overflow in float16. The second matrix product also
    sums over the experts, so the output of a single expert is never stored.

    Args:
        module: holds gate_up_proj `[E, 2I, H]`, with the gate first, and down_proj `[E, H, I]`.
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
    """Register the function with transformers. Further calls change nothing."""
    ALL_EXPERTS_FUNCTIONS.register(EVERY, every_expert)
