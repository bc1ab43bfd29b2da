"""batch_norm, batch_norm with ReLU (and residual), and group_norm, on layers of real models.

The fused forms are measured against the calls they replace: native batch_norm, add and relu, the
latter two in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.function_case import TensorFunction, function_case
from benchmarks.harness import Case

FLOAT, BFLOAT = torch.float32, torch.bfloat16

# (shape, whether channels last too in the quick run), of ResNet-50 and of what has other shapes
Shapes = list[tuple[tuple[int, ...], bool]]
SHAPES: Shapes = [
    ((32, 64, 112, 112), True),
    ((16, 256, 56, 56), True),
    ((16, 512, 28, 28), False),
    ((16, 1024, 14, 14), True),
    ((8, 2048, 7, 7), False),
    ((8, 64, 56, 56), True),  # in cache
    ((2, 16, 8, 8), False),  # small
    ((256, 1024), False),  # of a multilayer perceptron
]
GPU_SHAPES: Shapes = [
    ((256, 64, 112, 112), True),
    ((256, 256, 56, 56), True),
    ((256, 512, 28, 28), False),
    ((256, 2048, 7, 7), True),
    ((4096, 1024), False),
]
GROUP_NORM_SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((8, 64, 112, 112), 32),
    ((8, 256, 56, 56), 32),
    ((2, 320, 64, 64), 32),  # diffusion
    ((16, 1280, 8, 8), 32),
    ((1, 512, 32, 32), 1),
    ((64, 512), 32),
]


def as_module(function: Callable[..., Tensor], training: bool) -> TensorFunction:
    """The function of input, weight, bias and perhaps a residual, with running statistics."""
    statistics: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def call(values: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
        key = (weight.numel(), weight.dtype)
        if key not in statistics:
            like = weight.detach()
            statistics[key] = (torch.zeros_like(like), torch.ones_like(like))
        arguments = (values, *statistics[key], weight, bias, training)
        return function(*arguments, residual=residual[0]) if residual else function(*arguments)

    return call


def separate(*arguments: Any, residual: Tensor | None = None) -> Tensor:
    """What batch_norm_relu replaces."""
    output = F.batch_norm(*arguments)
    return F.relu_(output if residual is None else output.add_(residual))


def in_groups(function: Callable[..., Tensor], groups: int) -> TensorFunction:
    """group_norm of input, weight and bias."""

    def call(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(values, groups, weight, bias)

    return call


def channels_last(case: Case, quick: bool) -> Case:
    """The same case with its images channels last."""

    def make_inputs(device: torch.device) -> list[Tensor]:
        format = torch.channels_last
        inputs = case.make_inputs(device)
        return [t.contiguous(memory_format=format) if t.dim() == 4 else t for t in inputs]

    return replace(
        case,
        shape=f"{case.shape} channels_last",
        make_inputs=make_inputs,
        full_only=case.full_only or not quick,
    )


def batch_norm_case(
    op: str, direction: str, shape: tuple[int, ...], dtype: torch.dtype, training: bool, full: bool
) -> Case:
    """One variant on one shape: op is batch_norm, batch_norm_relu or batch_norm_add_relu."""
    fused = op != "batch_norm"
    fast = fastdl.functional.batch_norm_relu if fused else fastdl.functional.batch_norm
    native = separate if fused else F.batch_norm
    return function_case(
        op=op,
        direction=direction,
        shape="x".join(map(str, shape)) + ("" if training else " evaluation"),
        group=f"{op} {direction}",
        dtype=dtype,
        input_shapes=[shape, shape[1:2], shape[1:2], *[shape] * (op == "batch_norm_add_relu")],
        fast=as_module(fast, training),
        native=as_module(native, training),
        full_only=full,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    shapes = SHAPES if device == "cpu" else GPU_SHAPES
    for direction in ("forward", "backward"):
        for op in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu"):
            for shape, quick in shapes:
                for dtype in (FLOAT, BFLOAT):
                    for training in (True, False):
                        full = dtype == BFLOAT or not (training or direction == "forward")
                        case = batch_norm_case(op, direction, shape, dtype, training, full)
                        yield case
                        if len(shape) == 4:
                            yield channels_last(case, quick and training)
        for shape, groups in GROUP_NORM_SHAPES:
            for dtype in (FLOAT, BFLOAT):
                case = function_case(
                    op="group_norm",
                    direction=direction,
                    shape="x".join(map(str, shape)) + f" groups={groups}",
                    group=f"group_norm {direction}",
                    dtype=dtype,
                    input_shapes=[shape, shape[1:2], shape[1:2]],
                    fast=in_groups(fastdl.functional.group_norm, groups),
                    native=in_groups(F.group_norm, groups),
                    full_only=dtype == BFLOAT,
                )
                yield case
                if len(shape) == 4:
                    yield channels_last(case, quick=False)
