"""The formula of attention in float64, as in reference.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    soft_cap: float = 0.0,
    kept: Tensor | None = None,
) -> Tensor:
    """softmax(scale query key^T, capped, + mask) value; nothing is random: `kept` is given.

    Queries that see no key, as all of their scores are -inf, give 0.
    """
    q, k, v = query.double(), key.double(), value.double()
    if enable_gqa:
        k, v = (t.repeat_interleave(q.size(-3) // k.size(-3), -3) for t in (k, v))
    scores = (1 / math.sqrt(q.size(-1)) if scale is None else scale) * q @ k.mT
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.double()
    alone = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(alone, 0.0)
    weights = torch.exp(scores - scores.detach().amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    weights = weights.masked_fill(alone, 0.0)
    return (weights if kept is None else weights * kept.double()) @ v
