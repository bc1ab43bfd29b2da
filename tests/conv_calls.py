"""Calls of convolutions and their tensors, for the tests of all that convolution has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.compare import Call, check_function
from tests.tensors import LAYOUTS, random_tensor


def conv(name: str, *settings: Any, **options: Any) -> Call:
    """The call of one function with these arguments behind input, weight and bias."""

    def call(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor = getattr(module, name)(x, weight, bias, *settings, **options)
        return output

    return call


def pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def tensors_of(
    shape: tuple[int, ...], kernel: Any, dtype: torch.dtype, layout: str = "contiguous"
) -> list[Tensor]:
    """Input, weight and bias; weights are as small as initial ones."""
    n, channels, out_channels, groups, *size = shape
    window = pair(kernel) if len(size) == 2 else (kernel,)
    scale = (channels * torch.Size(window).numel()) ** -0.5
    weight = random_tensor((out_channels * groups, channels, *window), torch.float64) * scale
    return [
        random_tensor((n, channels * groups, *size), dtype, layout),
        LAYOUTS[layout](weight.to(dtype)),
        random_tensor((out_channels * groups,), dtype),
    ]


def check(call: Call, *tensors: Tensor | None, label: str = "") -> None:
    """As accurate as with torch, and computed by our kernels: on the CPU all but float64."""
    assert tensors[0] is not None
    ours = tensors[0].device.type == "cpu" and tensors[0].dtype != torch.float64
    check_function(call, *tensors, label=label, kernel=ours)
