"""The masks of torch's multi-head attention, where True hides a pair, as masks of fastdl."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdl import masks
from fastdl.masks import Mask
from fastdl.ops.mask_values import can_look


def are_covered(
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    query: Tensor,
    key: Tensor,
    heads: int,
    batch_dim: int,
) -> bool:
    """Whether their shapes and dtypes are those that torch takes, for 2 or 3 dimensions."""
    is_batched = query.dim() == 3
    length_dim = 1 - batch_dim if is_batched else 0
    length, keys = query.shape[length_dim], key.shape[length_dim]
    batch = query.shape[batch_dim] if is_batched else 1
    dtypes = (torch.bool, query.dtype)
    if key_padding_mask is not None:
        shape = (batch, keys) if is_batched else (keys,)
        if key_padding_mask.shape != shape or key_padding_mask.dtype not in dtypes:
            return False
    if attn_mask is None:
        return True
    shapes = ((length, keys), (batch * heads, length, keys))
    return tuple(attn_mask.shape) in shapes and attn_mask.dtype in dtypes


def _hides(mask: Tensor) -> Tensor | None:
    """True where a mask hides, if that is all it does: bool, or float of 0 and -inf (on a CPU)."""
    if mask.dtype == torch.bool:
        return mask
    if mask.requires_grad or not can_look(mask):
        return None
    hidden = mask == -math.inf
    return hidden if bool((hidden | (mask == 0)).all()) else None


def merged(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool
) -> Mask | None:
    """Both masks, (B, S) and 4-D, as one; is_causal stands for attn_mask."""
    result = masks.causal() if is_causal else None
    if attn_mask is not None and not is_causal:
        hidden = _hides(attn_mask)
        result = masks.bias(attn_mask) if hidden is None else masks.dense(~hidden)
    if key_padding_mask is None:
        return result
    hidden = _hides(key_padding_mask)
    if hidden is None:
        padding = masks.bias(key_padding_mask[:, None, None])
    elif can_look(hidden):
        padding = masks.key_padding(~hidden)
    else:
        padding = masks.dense(~hidden[:, None, None])
    return padding if result is None else result & padding
