"""Arguments of the registered ops of convolution, as in op_samples.py."""

from __future__ import annotations

from typing import Any

import torch

from tests.tensors import random_tensor

OPS = torch.ops.fastdl

# input, weight; stride, padding in front and behind, dilation, groups
CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], list[Any]]] = [
    ((2, 3, 6, 7), (4, 3, 3, 3), [[1, 1], [1, 1, 1, 1], [1, 1], 1]),
    ((2, 4, 9, 8), (6, 2, 3, 2), [[2, 1], [1, 1, 0, 1], [1, 2], 2]),
    ((2, 4, 9), (4, 1, 4), [[1], [1, 2], [1], 4]),
    ((1, 3, 5, 5), (2, 3, 1, 1), [[2, 2], [0, 0, 0, 0], [1, 1], 1]),
]


def conv_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    samples: list[tuple[Any, ...]] = []
    for number, (shape, weight_shape, settings) in enumerate(CONVOLUTIONS):
        for layout in ("contiguous", "channels_last"):
            x = random_tensor(shape, dtype, layout).requires_grad_(requires_grad)
            weight = random_tensor(weight_shape, dtype).requires_grad_(requires_grad)
            bias = random_tensor(weight_shape[:1], dtype).requires_grad_(requires_grad)
            samples.append((x, weight, bias, None, *settings, False, True))
            output = OPS.convolution(*samples[-1]).detach()
            residual = torch.randn_like(output).requires_grad_(requires_grad)
            relu = number % 2 == 0
            samples.append((x, weight, None, residual, *settings, relu, False))
    return samples


def conv_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for number, sample in enumerate(conv_samples(dtype, False)):
        x, weight, _, _, *settings, _, _ = sample
        grad = torch.randn_like(OPS.convolution(*sample))
        wanted = [[True] * 3, [True, False, False], [False, True, True], [False, False, True]]
        samples.append((grad, x, weight, *settings, wanted[number % 4]))
    return samples
