"""Attention of packed sequences: varlen_attn, and jagged nested tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastdl.ops import mask_values as values
from fastdl.ops.attention_parts import attention_with_parts
from fastdl.ops.mask import Mask
from fastdl.ops.mask_regions import Pairs, Sizes, interval_pairs

if TYPE_CHECKING:
    from torch.nn.attention.varlen import AuxRequest


def _windows(
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    used: Tensor | None,
    left: int | None,
    right: int | None,
    top_left: bool,
    sizes: Sizes,
) -> Pairs:
    """The keys of a query's own sequence, and of these the window around its position."""
    values.check_total(cu_seq_q, sizes.queries, "varlen_attn expects cu_seq_q", "queries")
    values.check_total(cu_seq_k, sizes.keys, "varlen_attn expects cu_seq_k", "keys")
    of_queries, of_keys = (cu.to(sizes.device).long() for cu in (cu_seq_q, cu_seq_k))
    own = values.documents(of_queries, sizes.queries).view(1, 1, -1)
    first, begin = of_queries[own], of_keys[own]
    end = of_keys[own + 1] if used is None else begin + used.to(sizes.device)[own]
    position = begin + sizes.positions() - first
    if not top_left:  # the last query of a sequence is at its last key
        position = position + (end - begin) - (of_queries[own + 1] - first)
    if left is not None:
        begin = torch.maximum(begin, position - left)
    if right is not None:
        end = torch.minimum(end, position + right + 1)
    return interval_pairs(begin, end, sizes)


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Of (T, H, D), as one batch."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    parts = mask.parts(1, q.shape[1], q.shape[2], k.shape[2], q.device)
    output = attention_with_parts(q, k, v, parts, dropout_p, scale, enable_gqa)
    return output[0].transpose(0, 1)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """``torch.nn.attention.varlen.varlen_attn``, on the CPU too: attention of sequences that lie
    one behind the other, each alone, by :func:`scaled_dot_product_attention`.

    Args:
        query: (T, H, D), the queries of all sequences.
        key, value: (S, H, D) and (S, H, Dv), or with ``enable_gqa`` of fewer heads.
        cu_seq_q, cu_seq_k: where sequences begin, and the end: integers (N + 1), rising from 0 to T
            and S. On a GPU they are not looked at.
        max_q, max_k: not needed.
        is_causal: ``window_size=(-1, 0)``.
        window_size: how many keys before and behind its own position a query sees, -1 for all. The
            last query of a sequence is at its last key.
        seqused_k: of the keys of each sequence only the first ones count, integers (N).
        dropout_p, scale, enable_gqa: as in :func:`scaled_dot_product_attention`.
        return_aux, block_table, num_splits: computed by native torch, on a GPU.

    Returns (T, H, Dv). Each query gets one interval of keys, so that memory is linear in T.
    """
    if cu_seq_k is None or block_table is not None or return_aux is not None or num_splits:
        if dropout_p > 0:
            raise ValueError("varlen_attn expects dropout_p=0 where native torch computes it")
        from torch.nn.attention.varlen import varlen_attn as native_varlen_attn

        output: Tensor | tuple[Tensor, Tensor] = native_varlen_attn(
            query,
            key,
            value,
            cu_seq_q,
            cu_seq_k,
            max_q,
            max_k,
            return_aux=return_aux,
            scale=scale,
            window_size=(window_size[0], 0) if is_causal else window_size,
            enable_gqa=enable_gqa,
            seqused_k=seqused_k,
            block_table=block_table,
            num_splits=num_splits,
        )
        return output
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 3:
            raise ValueError(
                f"varlen_attn expects {name} of shape (T, H, D), got {tuple(tensor.shape)}"
            )
    if len(window_size) != 2 or min(window_size) < -1:
        raise ValueError(
            f"varlen_attn expects window_size as two numbers of at least -1, got {window_size}"
        )
    left, right = (None if size == -1 else size for size in window_size)
    values.check_cu_seqlens(cu_seq_q, "varlen_attn expects cu_seq_q")
    values.check_cu_seqlens(cu_seq_k, "varlen_attn expects cu_seq_k")
    if len(cu_seq_q) != len(cu_seq_k):
        raise ValueError(
            "varlen_attn expects cu_seq_q and cu_seq_k of one length, got "
            f"{len(cu_seq_q)} and {len(cu_seq_k)}"
        )
    if seqused_k is not None:
        _check_used(seqused_k, cu_seq_k)
    right = 0 if is_causal else right
    mask = Mask(partial(_windows, cu_seq_q, cu_seq_k, seqused_k, left, right, False))
    return _packed(query, key, value, mask, dropout_p, scale, enable_gqa)


def _check_used(seqused_k: Tensor, cu_seq_k: Tensor) -> None:
    lengths, _ = values.as_lengths(seqused_k, "varlen_attn: seqused_k")
    if len(lengths) != len(cu_seq_k) - 1:
        raise ValueError(
            f"varlen_attn expects seqused_k of shape ({len(cu_seq_k) - 1},), got ({len(lengths)},)"
        )
    if values.can_look(lengths) and bool((lengths > cu_seq_k.to(lengths.device).diff()).any()):
        raise ValueError("varlen_attn expects seqused_k of at most the keys of each sequence")


def nested_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | Mask | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """scaled_dot_product_attention of jagged nested tensors (B, H, L of each, E), packed as one.

    None where native torch must compute or raise: other layouts, tensor masks, while compiling. A
    Mask counts positions in the packed sequence, as windows, ALiBi and soft caps allow if queries
    and keys have the same lengths; is_causal counts from the first query and key of each sequence.
    """
    inputs = (query, key, value)
    if isinstance(attn_mask, Tensor) or is_compiling():
        return None
    if not all(map(_is_packable, inputs)) or not query.dim() == key.dim() == value.dim() == 4:
        return None
    if key.offsets() is not value.offsets() or query.size(0) != key.size(0):
        return None
    if isinstance(attn_mask, Mask) and query.offsets() is not key.offsets():
        raise ValueError(
            "scaled_dot_product_attention expects nested queries and keys of the same lengths with "
            "a Mask"
        )
    packed = [x.transpose(1, 2).values() for x in inputs]
    q_offsets, k_offsets = query.offsets(), key.offsets()
    right = 0 if is_causal else None
    mask = Mask(partial(_windows, q_offsets, k_offsets, None, None, right, True))
    mask = mask if attn_mask is None else mask & attn_mask
    output = _packed(packed[0], packed[1], packed[2], mask, dropout_p, scale, enable_gqa)
    nested: Tensor = torch.nested.nested_tensor_from_jagged(output, q_offsets)
    return nested.transpose(1, 2)


def _is_packable(tensor: Any) -> bool:
    """Jagged along the rows of its heads, without holes."""
    return tensor.layout == torch.jagged and tensor._ragged_idx == 2 and tensor.lengths() is None
