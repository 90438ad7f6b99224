"""The attention functions that make Qwen-VL traceable, put into transformers' public registry.

No module is patched: transformers looks attention up by name (`config._attn_implementation`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

GROUPED = "grouped_sdpa"
PACKED = "flash_packed_sdpa"
"""transformers hands `cu_seqlens` over only to an implementation with "flash" in its name; the
others split by a Python list of lengths, which no trace can hold."""


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention that never repeats keys and values: one ONNX `Attention` node.

    Args:
        module: the calling attention module, unused.
        query: `[B, N, S, D]`.
        key: `[B, K, T, D]` with K key/value heads, N a multiple of K; `value` alike.
        value: see `key`.
        attention_mask: bool `[B, 1, S, T]`, true where a query may look.
        scaling: factor on the scores.

    Returns:
        `[B, S, N, D]`, and None for the weights that nobody asked for.
    """
    grouped = query.shape[1] != key.shape[1]  # torch.onnx takes the flag for a promise
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
    """Attention inside each segment of a packed row, any number of segments of any length.

    The segment of a position is the number of boundaries at or below it. Counting stays right for
    other segment counts than the example's; `torch.bucketize` does not: torch 2.13 unrolls its
    binary search over the example's.

    Args:
        module: the calling attention module, unused.
        query: `[1, N, P, D]`, P patches; `key` and `value` alike.
        key: see `query`.
        value: see `query`.
        attention_mask: None; the segments are the mask.
        scaling: factor on the scores.
        cu_seq_lens_q: `[segments + 1]`, boundaries from 0 to P.

    Returns:
        `[1, P, N, D]`, and None for the weights that nobody asked for.
    """
    position = torch.arange(query.shape[2], device=query.device)
    segment = (position[:, None] >= cu_seq_lens_q[None, 1:]).sum(-1)
    same = segment[:, None] == segment[None, :]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=scaling)
    return out.transpose(1, 2), None


def register() -> None:
    """Make both names known to transformers. Calling it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_sdpa)
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_sdpa)
    ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
