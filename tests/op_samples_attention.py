"""Arguments of the registered ops of attention, as in op_samples.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tensors import random_tensor

OPS = torch.ops.fastdl


def masks(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    """All arguments behind query [2, 4, 5, 8], key [2, 2, 7, 8] and value [2, 2, 7, 3]."""
    allowed = torch.rand(2, 1, 5, 7) < 0.6
    bias = random_tensor((1, 4, 1, 7), dtype).requires_grad_(requires_grad)
    begin = torch.arange(5, dtype=torch.int32).view(1, 1, 1, 5).expand(2, 2, 1, 5).contiguous()
    slopes = torch.rand(1, 4)
    return [
        (None, None, None, None, None, None, None, None, 0, 0.0, 0.3, 0.0, 0),
        (allowed, None, None, None, None, None, -2, 1, 0, 0.0, 0.3, 0.4, 7),
        (allowed, OPS.attention_mask_tiles(allowed), None, None, None, None, None, 3, 0, 0.0, 0.3,
         0.0, 0),
        (None, None, bias, None, None, None, None, None, 0, 0.0, 0.3, 0.0, 0),
        (None, None, None, begin, begin + 2, slopes, None, None, 2, 3.0, 0.3, 0.0, 0),
    ]  # fmt: skip


def attention_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    samples = []
    for mask in masks(dtype, requires_grad):
        query = random_tensor((2, 5, 4, 8), dtype).transpose(1, 2)
        key, value = (random_tensor((2, 2, 7, cols), dtype) for cols in (8, 3))
        tensors = (t.requires_grad_(requires_grad) for t in (query, key, value))
        samples.append((*tensors, *mask))
    return samples


def attention_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in attention_samples(dtype, False):
        output, lse = OPS.attention(*sample)
        for wanted in ([True] * 3, [False, True, False]):
            bias = sample[5] is not None
            samples.append(
                (torch.randn_like(output), *sample[:3], output, lse, *sample[3:], [*wanted, bias])
            )
    return samples


def attention_mask_tiles_samples(_: torch.dtype) -> list[tuple[Tensor, ...]]:
    return [(torch.rand(shape) < 0.5,) for shape in ((2, 1, 37, 130), (1, 3, 1, 64), (1, 1, 5, 1))]


def attention_kept_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(random_tensor((2, 3, 5, 8), dtype), random_tensor((2, 1, 7, 8), dtype), 0.3, 7)]
