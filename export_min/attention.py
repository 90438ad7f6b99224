"""Attention functions that torch.onnx can trace, registered with transformers.

transformers looks up the attention function by name (`config._attn_implementation`) in a public
registry, so no module has to be patched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

GROUPED = "grouped_sdpa"
PACKED = "flash_packed_sdpa"
"""The name contains "flash" because transformers passes `cu_seqlens` only to such implementations.
For any other name it splits the tensors by a Python list of lengths, which a trace would freeze."""


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention without repeated keys and values, exported as one `Attention` node.

    Args:
        module: the calling attention module, unused.
        query: `[B, N, S, D]`.
        key: `[B, K, T, D]` with K key/value heads; N is a multiple of K.
        value: `[B, K, T, D]`.
        attention_mask: bool `[B, 1, S, T]`, true where a query attends to a key.
        scaling: factor applied to the scores.

    Returns:
        The result `[B, S, N, D]`, and None in place of the attention weights.
    """
    grouped = query.shape[1] != key.shape[1]  # set, torch.onnx takes N and K to differ
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2), None


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each segment of a packed row, for any number of segments of any length.

    The index of a position's segment is the number of boundaries at or below it. Counting them
    works for any number of segments. `torch.bucketize` would not: torch 2.13 unrolls its binary
    search for the number of segments in the example inputs.

    Args:
        module: the calling attention module, unused.
        query: `[1, N, P, D]` for P patches.
        key: `[1, N, P, D]`.
        value: `[1, N, P, D]`.
        attention_mask: None, because the segments define the mask.
        scaling: factor applied to the scores.
        cu_seq_lens_q: `[segments + 1]`, the boundaries of the segments, from 0 to P.

    Returns:
        The result `[1, P, N, D]`, and None in place of the attention weights.
    """
    position = torch.arange(query.shape[2], device=query.device)
    segment = (position[:, None] >= cu_seq_lens_q[None, 1:]).sum(-1)
    same = segment[:, None] == segment[None, :]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=scaling)
    return out.transpose(1, 2), None


def register() -> None:
    """Register both functions with transformers. Further calls change nothing."""
    ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_sdpa)
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_sdpa)
    ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
