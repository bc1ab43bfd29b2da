"""Hugging Face transformers on fastdl's attention.

    import fastdl.integrations.transformers
    fastdl.integrations.transformers.register()
    model = AutoModel.from_pretrained(name, attn_implementation="fastdl")

Causal masks, sliding windows, padding and packed sequences reach the kernel as intervals of keys,
without tensors of L x S; keys and values of grouped heads are not repeated. Patterns that are not
known, static caches and masks that a model wants as a tensor are boolean tensors, as for "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from fastdl import masks
from fastdl.masks import Mask
from fastdl.ops.attention import scaled_dot_product_attention


def register(name: str = "fastdl") -> None:
    """Makes ``attn_implementation=name`` known to transformers, for models made from then on."""
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask_of)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Mask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: (B, H, L, D) in, (B, L, H, D) out, and no attention weights."""
    if s_aux is not None:
        raise ValueError(
            "attn_implementation='fastdl' does not support learned attention sinks (s_aux): "
            "use 'eager'"
        )
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = query.shape[2] > 1 and attention_mask is None and is_causal
    mask: Tensor | Mask | None = attention_mask
    if softcap is not None or position_bias is not None:
        if is_causal:
            mask, is_causal = masks.causal(), False
        elif isinstance(mask, Tensor):
            mask = masks.dense(mask) if mask.dtype == torch.bool else masks.bias(mask)
        added = [] if position_bias is None else [masks.bias(position_bias)]
        added += [] if softcap is None else [masks.soft_cap(softcap)]
        mask = reduce(Mask.__and__, added if mask is None else [mask, *added])
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def attention_mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | Mask | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    **rest: Any,
) -> Tensor | Mask | None:
    """transformers' interface: the mask of its function and padding; None if nothing is hidden
    but what is_causal hides."""
    if isinstance(attention_mask, Mask):  # made by generate() already
        return attention_mask
    # Models that may not skip the mask take parts of it, but for packed sequences.
    skips = allow_is_causal_skip or allow_is_bidirectional_skip
    packed = _uses(mask_function, "packed_sequence_mask_function")
    mask = None
    if (skips or packed) and not (use_vmap or is_compiling() or isinstance(q_offset, Tensor)):
        mask = _known(mask_function, q_offset - kv_offset)
    if mask is None:
        output: Tensor | None = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            use_vmap=use_vmap,
            **rest,
        )
        return output
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        return mask
    real = padding[:, kv_offset : kv_offset + kv_length]
    return mask if bool(real.all()) else mask & masks.key_padding(real)


def _parts_of(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Which of transformers' factories made a mask function, and of what."""
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", None) != masking_utils.__name__:
        return "", {}
    cells = function.__closure__ or ()
    values = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    return function.__qualname__.partition(".")[0], values


def _uses(function: Callable[..., Any], name: str) -> bool:
    factory, values = _parts_of(function)
    return factory == name or any(_uses(one, name) for one in values.get("mask_functions", ()))


def _known(function: Callable[..., Any], shift: int) -> Mask | None:
    """The function as a Mask, where it sees query i at key i + shift; None if it is not known."""
    factory, values = _parts_of(function)
    if factory == "causal_mask_function":
        return masks.causal(offset=shift)
    if factory == "bidirectional_mask_function":
        return masks.sliding_window(None, None)
    if factory == "sliding_window_overlay":
        return masks.sliding_window(values["sliding_window"] - 1, None, offset=shift)
    if factory == "sliding_window_bidirectional_overlay":
        window = values["sliding_window"]
        return masks.sliding_window(window, window, offset=shift)
    if factory == "packed_sequence_mask_function" and shift == 0:
        return masks.document(values["packed_sequence_mask"])
    if factory == "remap_positions_for_packed_sequence":
        # Within a sequence positions rise by one: the distance of two is that of their indices.
        return _known(values["mask_function"], shift)
    if factory in ("and_masks", "or_masks"):
        both = [_known(one, shift) for one in values["mask_functions"]]
        known = [mask for mask in both if mask is not None]
        if len(known) == len(both):
            return reduce(Mask.__and__ if factory == "and_masks" else Mask.__or__, known)
    return None
