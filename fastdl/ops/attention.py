"""scaled_dot_product_attention: torch's function on fastdl."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling
from torch.nested._internal.nested_tensor import NestedTensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from fastdl import _C
from fastdl.ops.attention_parts import attention_with_parts, by_kernel, four_dims
from fastdl.ops.mask import Mask, MaskParts
from fastdl.ops.varlen_attention import nested_attention


def _parts_of(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> MaskParts | None:
    """Those of torch's arguments; None where torch must judge them."""
    if attn_mask is None:
        return MaskParts(highest=0 if is_causal else None)
    if is_causal:
        return None
    if isinstance(attn_mask, CausalBias):
        if attn_mask.variant == CausalVariant.UPPER_LEFT:
            return MaskParts(highest=0)
        queries, keys = attn_mask.seq_len_q, attn_mask.seq_len_kv
        same = (queries, keys) == (query.size(-2), key.size(-2))
        return MaskParts(highest=keys - queries) if same else None
    if not 2 <= attn_mask.dim() <= query.dim():
        return None
    if attn_mask.dtype == torch.bool:
        return MaskParts(allowed=four_dims(attn_mask))
    return MaskParts(bias=four_dims(attn_mask))


def _by_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """What torch's arguments are to a compiler, and torch's causal biases always."""
    if not query.dim() == key.dim() == value.dim() or query.dim() not in (2, 3, 4):
        return None
    parts = _parts_of(query, key, attn_mask, is_causal)
    if parts is None:
        return None
    q, k, v = (four_dims(tensor) for tensor in (query, key, value))
    output = by_kernel(q, k, v, parts, dropout_p, scale, enable_gqa)
    return None if output is None else output.reshape(*query.shape[:-1], value.shape[-1])


def _with_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    if is_causal:
        raise ValueError(
            "scaled_dot_product_attention expects is_causal=False with a Mask: combine them as "
            "mask & fastdl.masks.causal()"
        )
    if query.dim() < 2 or not query.dim() == key.dim() == value.dim():  # torch's error
        return native.scaled_dot_product_attention(query, key, value)
    q, k, v = (four_dims(tensor) for tensor in (query, key, value))
    batch = max(tensor.shape[0] for tensor in (q, k, v))
    parts = mask.parts(batch, q.shape[1], q.shape[2], k.shape[2], query.device)
    output = attention_with_parts(q, k, v, parts, dropout_p, scale, enable_gqa)
    return output.reshape(*query.shape[:-1], value.shape[-1])


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""``torch.nn.functional.scaled_dot_product_attention``: of every query i, over the keys j that
    the mask leaves, :math:`y_i = \sum_j k_{ij}\, \mathrm{softmax}_j(s_{ij})\, v_j` with the scores
    :math:`s_{ij} = \mathrm{scale}\; q_i \cdot k_j + b_{ij}`. Scores are never stored: memory is
    linear in both lengths, in the backward too.

    Args:
        query: (N, ..., H, L, E), of any memory layout; rows of E elements side by side, such as
            those of a transposed (N, L, H, E), are read as they are. Kernels cover float32,
            bfloat16 and float16, and E and Ev up to 256.
        key: (N, ..., H, S, E).
        value: (N, ..., H, S, Ev).
        attn_mask: True where a pair counts, or b, floats (float32 or of the query's dtype) that are
            added, with a gradient if it requires one; broadcastable to (N, ..., H, L, S). Or a
            :class:`fastdl.masks.Mask`, or a ``CausalBias`` of torch, neither of which is stored.
        dropout_p: k is 0 with this probability, else 1 / (1 - dropout_p); it is always applied.
        is_causal: query i sees the keys j <= i. Not together with ``attn_mask``.
        scale: of the products; 1 / sqrt(E) by default.
        enable_gqa: key and value may have fewer heads, by which those of the query are divisible:
            head h reads head h / (H / heads of key).

    Returns (N, ..., H, L, Ev) in the dtype of the query, in memory in its order. Products and
    softmax are summed in float32. A query without keys gets zeros and gives no gradient, as in
    torch on the CPU. The same inputs and seed give the same bits, gradients included. Dropout draws
    one seed from torch's generator, and the backward makes its mask again; the mask of a seed is
    not torch's. Errors are torch's. Native torch computes what no kernel covers, and all while
    ``torch.nn.attention.sdpa_kernel`` restricts its backends.

    Source: Dao, "FlashAttention-2", 2023.
    """
    # By type: isinstance() and attributes of a tensor are calls that torch's modes would see.
    if type(query) is NestedTensor:
        output = nested_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
        if output is not None:
            return output
    if issubclass(type(attn_mask), Mask):
        own = cast("Mask", attn_mask)
        return _with_mask(query, key, value, own, dropout_p, is_causal, scale, enable_gqa)
    mask = cast("Tensor | None", attn_mask)
    arguments = (query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
    if is_compiling() or type(attn_mask) is CausalBias:
        output = _by_parts(*arguments)
    else:
        output = _C.attention(*arguments)
    if output is not None:
        return output
    return native.scaled_dot_product_attention(  # by name, as its errors tell
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
