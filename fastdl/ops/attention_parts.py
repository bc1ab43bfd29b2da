"""Attention with the parts of a mask: by a kernel, by the op that a compiler sees, or by torch."""

from __future__ import annotations

import math
import platform
from dataclasses import replace

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from fastdl import _C, _build_info
from fastdl.ops.mask import MaskParts

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_COLS = 256  # of a query, key or value
_DEVICES = {"cuda"} if _build_info.CUDA_VERSION else set()
if platform.machine() not in ("x86_64", "AMD64") or _C.cpu_isa() != "default":
    _DEVICES.add("cpu")


def _backends_are_restricted() -> bool:
    """Whether torch.nn.attention.sdpa_kernel forbids any of torch's kernels, for compilers."""
    return not (
        torch._C._get_flash_sdp_enabled()
        and torch._C._get_mem_efficient_sdp_enabled()
        and torch._C._get_math_sdp_enabled()
        and torch._C._get_cudnn_sdp_enabled()
        and torch._C._get_overrideable_sdp_enabled()
    )


def four_dims(tensor: Tensor) -> Tensor:
    """(batch, heads, rows, cols), where all leading dimensions but the last are one batch."""
    while tensor.dim() < 4:
        tensor = tensor.unsqueeze(0)
    return tensor.flatten(0, -4) if tensor.dim() > 4 else tensor


def compiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: MaskParts,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """The registered op as a compiler sees it, or None where it should see torch's."""
    if is_exporting() or dropout_p != 0 or query.device.type not in _DEVICES:
        return None
    if _backends_are_restricted():
        return None
    if query.dtype not in KERNEL_DTYPES or not query.dtype == key.dtype == value.dtype:
        return None
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    if key.shape != (batch, kv_heads, keys, head_dim) or value.shape[:3] != key.shape[:3]:
        return None
    if 0 in query.shape or 0 in key.shape or max(head_dim, value.shape[3]) > _MOST_COLS:
        return None
    if heads != kv_heads and (not enable_gqa or heads % kv_heads != 0):
        return None
    if parts.bias is not None and parts.bias.dtype not in (query.dtype, torch.float32):
        return None
    for mask in (parts.allowed, parts.bias):
        if mask is None:
            continue
        whole = (batch, heads, queries, keys)
        if any(size not in (1, full) for size, full in zip(mask.shape, whole, strict=True)):
            return None
    output: Tensor
    output, _ = torch.ops.fastdl.attention(
        query,
        key,
        value,
        parts.allowed,
        None,
        parts.bias,
        parts.begin,
        parts.end,
        parts.slopes,
        parts.lowest,
        parts.highest,
        parts.slope_offset,
        parts.soft_cap,
        1 / math.sqrt(head_dim) if scale is None else scale,
        0.0,
        0,
    )
    return output


def by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: MaskParts,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """With a mask of all pairs in memory, and for a soft_cap all scores."""
    allowed, bias = parts.dense(query.shape[-2], key.shape[-2], query.device)
    if parts.soft_cap == 0:
        mask = allowed if bias is None else bias
        if allowed is not None and bias is not None:
            mask = bias.masked_fill(~allowed, -math.inf)
        return native.scaled_dot_product_attention(
            query, key, value, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        of_a_key = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(of_a_key, 1) for t in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    scores = parts.soft_cap * (scores / parts.soft_cap).tanh()
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    return native.dropout(weights, dropout_p, dropout_p > 0).to(value.dtype) @ value


def by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: MaskParts,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """Of four dimensions; None where torch must compute."""
    if is_compiling():
        return compiled(query, key, value, parts, dropout_p, scale, enable_gqa)
    return _C.masked_attention(
        query,
        key,
        value,
        parts.lowest,
        parts.highest,
        parts.begin,
        parts.end,
        parts.allowed,
        parts.bias,
        parts.slopes,
        parts.slope_offset,
        parts.soft_cap,
        dropout_p,
        scale,
        enable_gqa,
    )


def attention_with_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: MaskParts,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention of four dimensions, with a mask of any kind."""
    if parts.bias is not None and parts.bias.dtype not in (query.dtype, torch.float32):
        parts = replace(parts, bias=parts.bias.to(query.dtype))
    arguments = (query, key, value, parts, dropout_p, scale, enable_gqa)
    output = by_kernel(*arguments)
    return by_torch(*arguments) if output is None else output
