"""Float64 formulas of convolution, as in reference.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def each(value: Any, dims: int) -> list[int]:
    """One number a dimension."""
    return list(value) * (dims // len(value)) if isinstance(value, Sequence) else [value] * dims


def conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A product of matrices for each tap of the window, added up."""
    x, w = input.double(), weight.double()
    if x.dim() == dims + 1:
        only = None if residual is None else residual[None]
        settings = (weight, bias, stride, padding, dilation, groups, only, relu)
        return conv(dims, x[None], *settings)[0]
    sizes, steps, gaps = list(w.shape[2:]), each(stride, dims), each(dilation, dims)
    totals = [gap * (size - 1) for gap, size in zip(gaps, sizes, strict=True)]
    if padding == "same":
        around = [(total // 2, total - total // 2) for total in totals]
    else:
        around = [(p, p) for p in each(0 if padding == "valid" else padding, dims)]
    x = torch.nn.functional.pad(x, [side for pair in reversed(around) for side in pair])
    outputs = [
        (size - total - 1) // step + 1
        for size, total, step in zip(x.shape[2:], totals, steps, strict=True)
    ]
    x = x.unflatten(1, (groups, -1))
    w = w.unflatten(0, (groups, -1))
    output = x.new_zeros(())
    for taps in itertools.product(*(range(size) for size in sizes)):
        part, matrix = x, w
        for d, tap in enumerate(taps):
            indices = torch.arange(outputs[d]) * steps[d] + tap * gaps[d]
            part = part.index_select(3 + d, indices)
            matrix = matrix.select(3, tap)
        output = output + torch.einsum("ngc...,goc->ngo...", part, matrix)
    output = output.flatten(1, 2)
    if bias is not None:
        output = output + bias.double().reshape(-1, *(1 for _ in range(dims)))
    if residual is not None:
        output = output + residual.double()
    return output.relu() if relu else output


def conv_add(dims: int, input: Tensor, weight: Tensor, residual: Tensor, *args: Any) -> Tensor:
    """The residual where the functions of fastdl take it."""
    return conv(dims, input, weight, *args, residual=residual)


conv1d, conv2d = partial(conv, 1), partial(conv, 2)
conv1d_relu, conv2d_relu = partial(conv, 1, relu=True), partial(conv, 2, relu=True)
conv1d_add, conv2d_add = partial(conv_add, 1), partial(conv_add, 2)
