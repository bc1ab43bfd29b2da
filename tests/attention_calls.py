"""Calls of attention and their tensors, for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastdl
from tests.compare import Call, check_function
from tests.tensors import random_tensor


def attention(**options: Any) -> Call:
    """The call of the function with these arguments behind query, key, value and mask."""

    def call(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        given = options | ({} if mask is None else {"attn_mask": mask})
        output: Tensor = module.scaled_dot_product_attention(query, key, value, **given)
        return output

    return call


def tensors_of(
    queries: int,
    keys: int,
    head_dim: int,
    value_dim: int | None = None,
    *,
    batch: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Query, key and value."""
    kv_heads = heads if kv_heads is None else kv_heads
    return [
        random_tensor((batch, heads, queries, head_dim), dtype),
        random_tensor((batch, kv_heads, keys, head_dim), dtype),
        random_tensor((batch, kv_heads, keys, value_dim or head_dim), dtype),
    ]


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether plain calls are ours: with AVX-512 torch's own are faster in 16 bits."""
    if torch.get_default_device().type != "cpu":
        return dtype != torch.float64
    by_isa = {"default": (), "avx512": (torch.float32,)}
    every = (torch.float32, torch.bfloat16, torch.float16)
    return dtype in by_isa.get(fastdl.cpu_isa(), every)


def check(call: Call, *tensors: Tensor | None, label: str = "") -> None:
    """As accurate as with torch, and computed by our kernels where they are to.

    Gradients of scores are differences of numbers of about 1, summed in float32. On a GPU the
    order of torch's output in memory is that of the kernel that it chose.
    """
    assert tensors[0] is not None
    on_cpu, ours = tensors[0].device.type == "cpu", has_kernel(tensors[0].dtype)
    check_function(call, *tensors, label=label, kernel=ours, strides=on_cpu, atol=1e-6)


def heads_last(tensor: Tensor) -> Tensor:
    """(batch, rows, heads, cols) in memory, as models make it."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
