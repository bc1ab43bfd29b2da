"""softmax, log_softmax and softmin on shapes of real models.

The last dimension is contiguous; any other one is strided, needs another kernel and forms a group
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks import liger
from benchmarks.function_case import TensorFunction, function_case
from benchmarks.harness import LIGER, Case
from benchmarks.liger import if_installed

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
ALL = ("softmax", "log_softmax")

# shape, dim, functions and dtypes of the quick run, further dtypes of the full run
Shapes = list[tuple[tuple[int, ...], int, tuple[str, ...], list[torch.dtype], list[torch.dtype]]]
SHAPES: Shapes = [
    ((512, 1024), -1, ALL, [FLOAT], [BFLOAT, HALF, DOUBLE]),
    ((4096, 4096), -1, ("softmax",), [FLOAT], [BFLOAT, HALF, DOUBLE]),
    ((32, 12, 128, 128), -1, ("softmax",), [FLOAT, BFLOAT], [HALF]),  # attention of BERT
    ((8192, 10), -1, ALL, [FLOAT], [BFLOAT]),  # a ten-class classifier
    ((64, 50257), -1, ALL, [FLOAT], [BFLOAT, HALF]),  # the vocabulary of GPT-2
    ((128, 32000), -1, ("log_softmax",), [FLOAT, BFLOAT], [HALF]),  # the vocabulary of Llama
    ((4096, 50), -1, ("softmax",), [FLOAT, HALF, DOUBLE], [BFLOAT]),  # odd, below a vector width
    ((4096, 4096), 0, ("softmax",), [FLOAT], [BFLOAT]),
    ((8, 19, 256, 256), 1, ALL, [FLOAT], [BFLOAT]),  # segmentation of Cityscapes
    ((64, 128, 64), 1, ("softmax",), [FLOAT], [BFLOAT]),
]
GPU_SHAPES: Shapes = [
    ((512, 1024), -1, ("softmax",), [FLOAT], [BFLOAT]),  # in cache
    ((8192, 1024), -1, ALL, [BFLOAT], [FLOAT, HALF]),
    ((8192, 4096), -1, ALL, [BFLOAT, FLOAT], [HALF, DOUBLE]),
    ((8192, 16384), -1, ("softmax",), [BFLOAT], [FLOAT]),
    ((8192, 65536), -1, ("softmax",), [BFLOAT], [FLOAT]),
    ((8192, 32000), -1, ("log_softmax",), [BFLOAT], [FLOAT]),  # the vocabulary of Llama 2
    ((8192, 50257), -1, ("log_softmax",), [BFLOAT, FLOAT], [HALF]),  # of GPT-2: odd
    ((4096, 128256), -1, ALL, [BFLOAT], [FLOAT]),  # of Llama 3
    ((32, 12, 512, 512), -1, ("softmax",), [BFLOAT, HALF], [FLOAT]),  # attention of BERT
    ((16, 32, 1024, 1024), -1, ("softmax",), [BFLOAT], [FLOAT]),
    ((2**20, 64), -1, ("softmax",), [BFLOAT], [FLOAT]),  # windows of Swin
    ((8192, 8192), 0, ("softmax",), [FLOAT], [BFLOAT]),
    ((16, 19, 512, 1024), 1, ALL, [BFLOAT], [FLOAT]),  # segmentation of Cityscapes
]


def along(function: TensorFunction, dim: int) -> TensorFunction:
    """The function along one dimension."""

    def call(values: Tensor) -> Tensor:
        return function(values, dim)

    return call


def native_alternatives(
    native: TensorFunction, op: str, dim: int, dtype: torch.dtype, device: str
) -> dict[str, TensorFunction]:
    """What a user of torch could write instead, with the same values as the result."""
    if device != "cpu" and op == "softmax" and dim == -1:
        function = if_installed(liger.softmax, dtype)
        return {LIGER: function} if function else {}
    if dim != -1:
        return {"transposed": lambda values: native(values.movedim(dim, -1), -1).movedim(-1, dim)}
    if op == "log_softmax":
        return {"x - logsumexp": lambda values: values - values.logsumexp(dim, keepdim=True)}
    return {}


def softmax_case(
    op: str,
    direction: str,
    shape: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    full_only: bool,
    device: str,
) -> Case:
    """One op along one dimension of one shape."""
    native: TensorFunction = getattr(F, op)
    sizes = "x".join(map(str, shape))
    return function_case(
        op=op,
        direction=direction,
        shape=sizes if dim == -1 else f"{sizes} dim={dim}",
        group=f"{op} {direction}, {'last dim' if dim == -1 else 'other dim'}",
        dtype=dtype,
        input_shapes=[shape],
        fast=along(getattr(fastdl.functional, op), dim),
        native=along(native, dim),
        alternatives=native_alternatives(native, op, dim, dtype, device),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    shapes = SHAPES if device == "cpu" else GPU_SHAPES
    for op in ("softmax", "log_softmax", "softmin"):
        for direction in ("forward", "backward"):
            for shape, dim, quick_ops, quick_dtypes, full_dtypes in shapes:
                for dtype in quick_dtypes + full_dtypes:
                    quick = op in quick_ops and dtype in quick_dtypes
                    yield softmax_case(op, direction, shape, dim, dtype, not quick, device)
