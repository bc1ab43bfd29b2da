"""Pooling on shapes of real models: each function, both memory formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.function_case import (
    TensorFunction,
    prepare_backward,
    prepare_compiled,
    prepare_forward,
    random_inputs,
)
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
NCHW, LAST = torch.contiguous_format, torch.channels_last
BOTH = (NCHW, LAST)

# function, arguments, shape, formats of the quick run, further dtypes of the full run
Shapes = list[tuple[str, tuple[Any, ...], tuple[int, ...], tuple[torch.memory_format, ...]]]
SHAPES: Shapes = [
    ("max_pool2d", (3, 2, 1), (32, 64, 112, 112), BOTH),  # ResNet's stem
    ("max_pool2d", (2, 2), (16, 128, 112, 112), BOTH),  # VGG
    ("max_pool2d", (3, 2), (16, 64, 55, 55), BOTH),  # AlexNet, SqueezeNet
    ("max_pool2d", (5, 1, 2), (8, 256, 20, 20), BOTH),  # YOLO's spatial pyramid
    ("max_pool2d", (2, 2), (8, 16, 14, 14), BOTH),  # LeNet, in cache
    ("max_pool1d", (2, 2), (32, 64, 1024), (NCHW,)),
    ("max_pool1d", (3, 2, 1), (16, 128, 500), (NCHW,)),
    ("avg_pool2d", (2, 2), (16, 128, 56, 56), BOTH),  # DenseNet's transitions
    ("avg_pool2d", (3, 1, 1), (16, 192, 35, 35), BOTH),  # Inception
    ("avg_pool2d", (2, 2), (8, 16, 14, 14), BOTH),
    ("avg_pool1d", (2, 2), (32, 64, 1024), (NCHW,)),
    ("adaptive_avg_pool2d", (1,), (64, 2048, 7, 7), BOTH),  # ResNet's head
    ("adaptive_avg_pool2d", (1,), (16, 96, 56, 56), BOTH),  # squeeze and excitation
    ("adaptive_avg_pool2d", (1,), (16, 32, 112, 112), BOTH),
    ("adaptive_avg_pool2d", (7,), (16, 256, 14, 14), BOTH),
    ("adaptive_avg_pool2d", (6,), (8, 256, 64, 64), BOTH),  # pyramid scene parsing
    ("adaptive_max_pool2d", (7,), (16, 512, 20, 20), BOTH),
    ("adaptive_avg_pool1d", (1,), (32, 256, 512), (NCHW,)),
    ("adaptive_max_pool1d", (1,), (32, 256, 512), (NCHW,)),
]
FULL_DTYPES = [BFLOAT, HALF, DOUBLE]


def with_arguments(function: Any, arguments: tuple[Any, ...]) -> TensorFunction:
    """The function of an input alone."""

    def call(x: Tensor) -> Tensor:
        return function(x, *arguments)

    return call


def prepare_training_forward(function: TensorFunction) -> Prepare:
    """Time the function alone, but with what it keeps for the backward."""

    def prepare(inputs: Inputs) -> Call:
        return partial(function, *(tensor.detach().requires_grad_() for tensor in inputs))

    return prepare


PREPARE: dict[str, Callable[[TensorFunction], Prepare]] = {
    "forward": prepare_forward,
    "training forward": prepare_training_forward,
    "backward": prepare_backward,
}


def native_alternatives(
    name: str, native: TensorFunction, arguments: tuple[Any, ...], format: torch.memory_format
) -> dict[str, TensorFunction]:
    """What a user of torch could write instead, with the same values as the result."""
    if name == "adaptive_avg_pool2d" and arguments == (1,):
        return {"mean": lambda x: x.mean((2, 3), keepdim=True)}
    if name.endswith("2d") and format == NCHW:
        return {
            "through channels_last": lambda x: native(x.contiguous(memory_format=LAST)).contiguous()
        }
    return {}


def pool_case(
    name: str,
    direction: str,
    arguments: tuple[Any, ...],
    shape: tuple[int, ...],
    format: torch.memory_format,
    dtype: torch.dtype,
    full_only: bool,
) -> Case:
    """One function with its arguments on one shape, in one format."""
    native = with_arguments(getattr(F, name), arguments)
    fast = with_arguments(getattr(fastdl.functional, name), arguments)
    backward = direction == "backward"
    prepare = PREPARE[direction]
    functions = {FASTDL: fast, DEFAULT: native}
    functions |= native_alternatives(name, native, arguments, format)
    candidates = {key: prepare(function) for key, function in functions.items()}
    candidates[COMPILED] = prepare_compiled(native, prepare)
    output_shape = tuple(native(torch.empty(shape, device="meta")).shape)
    inputs, outputs = torch.Size(shape).numel(), torch.Size(output_shape).numel()
    # Training also writes where a maximum was, in a byte, and reads it.
    offsets = outputs if direction != "forward" and "max" in name else 0

    def make_inputs(device: torch.device) -> Inputs:
        tensors = random_inputs([shape, output_shape][: 1 + backward], dtype, device)
        return [t.contiguous(memory_format=format) if t.dim() == 4 else t for t in tensors]

    layout = " channels_last" if format == LAST else ""
    return Case(
        op=name,
        direction=direction,
        shape=f"{'x'.join(map(str, shape))} {arguments}{layout}",
        dtype=dtype,
        group=f"{name} {direction}{layout}",
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=(inputs + outputs) * dtype.itemsize + offsets,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked. The shapes are the same on a GPU."""
    for direction in PREPARE:
        for name, arguments, shape, formats in SHAPES:
            if direction == "training forward" and "max" not in name:
                continue  # a mean keeps nothing
            for format in formats:
                for dtype in [FLOAT, *FULL_DTYPES]:
                    yield pool_case(
                        name, direction, arguments, shape, format, dtype, dtype != FLOAT
                    )
