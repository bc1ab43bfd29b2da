"""The activation functions on shapes of real models, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.function_case import TensorFunction, function_case
from benchmarks.harness import Case

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64

IMAGES, HIDDEN, CACHED = (32, 64, 112, 112), (8192, 3072), (512, 1024)
GPU_IMAGES, GPU_HIDDEN = (256, 64, 112, 112), (16384, 16384)

# name of the case: function, options, shapes of the quick run in float32 (others: full run)
FUNCTIONS: dict[str, tuple[str, dict[str, str], tuple[tuple[int, ...], ...]]] = {
    "relu": ("relu", {}, (IMAGES, CACHED)),
    "sigmoid": ("sigmoid", {}, (CACHED,)),
    "tanh": ("tanh", {}, (CACHED,)),
    "gelu": ("gelu", {}, (HIDDEN, CACHED)),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}, (HIDDEN, CACHED)),
    "silu": ("silu", {}, (HIDDEN, CACHED)),
    "leaky_relu": ("leaky_relu", {}, (IMAGES,)),
    "elu": ("elu", {}, (CACHED,)),
}
# Gathered in one group each: the memory decides, or the arithmetic does.
SIMPLE = ("relu", "leaky_relu")


def with_options(function: TensorFunction, options: dict[str, str]) -> TensorFunction:
    """The function of one tensor."""

    def call(values: Tensor) -> Tensor:
        return function(values, **options)

    return call


def activation_case(
    name: str, direction: str, shape: tuple[int, ...], dtype: torch.dtype, full_only: bool
) -> Case:
    """One function on one shape."""
    function, options, _ = FUNCTIONS[name]
    kind = "comparisons" if name in SIMPLE else "exponentials"
    return function_case(
        op=name,
        direction=direction,
        shape="x".join(map(str, shape)),
        group=f"activation {direction}, {kind}",
        dtype=dtype,
        input_shapes=[shape],
        fast=with_options(getattr(fastdl.functional, function), options),
        native=with_options(getattr(F, function), options),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    larger = {IMAGES: GPU_IMAGES, HIDDEN: GPU_HIDDEN} if device != "cpu" else {}
    for name, (_, _, quick_shapes) in FUNCTIONS.items():
        for direction in ("forward", "backward"):
            for shape in (IMAGES, HIDDEN, CACHED):
                for dtype in (FLOAT, BFLOAT, HALF, DOUBLE):
                    full_only = dtype != FLOAT or shape not in quick_shapes
                    sizes = larger.get(shape, shape)
                    yield activation_case(name, direction, sizes, dtype, full_only)
