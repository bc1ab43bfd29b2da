"""dropout, alone and before a residual connection with a layer norm, on shapes of transformers.

"training" is forward and backward together: fastdl keeps no mask, and finds it again in backward.
No errors are compared: the masks of two generators differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.function_case import function_case
from benchmarks.harness import Case, no_error_ratio

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
P = 0.1

# shape, dtypes of the quick run, further ones of the full run
Shapes = list[tuple[tuple[int, ...], list[torch.dtype], list[torch.dtype]]]
SHAPES: Shapes = [
    ((8192, 768), [FLOAT, BFLOAT], [HALF]),  # BERT and GPT-2, 16 x 512 tokens
    ((8192, 3072), [FLOAT], [BFLOAT]),  # their hidden layer
    ((512, 1024), [FLOAT], [BFLOAT]),  # in cache
    ((32, 256), [], [FLOAT]),
]
GPU_SHAPES: Shapes = [
    ((65536, 768), [BFLOAT, FLOAT], [HALF]),
    ((16384, 4096), [BFLOAT], [FLOAT, HALF]),
    ((512, 1024), [BFLOAT], [FLOAT]),
]


def dropout(module: object) -> Callable[[Tensor], Tensor]:
    """Of fastdl or torch."""
    return lambda values: module.dropout(values, P)  # type: ignore[attr-defined]


def dropout_case(
    direction: str, shape: tuple[int, ...], dtype: torch.dtype, full_only: bool
) -> Case:
    """Reads one tensor and writes one, each way."""
    case = function_case(
        op="dropout",
        direction=direction,
        shape="x".join(map(str, shape)),
        group=f"dropout {direction}",
        dtype=dtype,
        input_shapes=[shape],
        fast=dropout(fastdl.functional),
        native=dropout(F),
        full_only=full_only,
    )
    ways = 2 if direction == "training" else 1
    moved = ways * 2 * torch.Size(shape).numel() * dtype.itemsize
    return replace(case, bytes_moved=moved, error_ratio=no_error_ratio)


def fused(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The end of a transformer's sublayer in one call."""
    function = fastdl.functional.dropout_add_layer_norm
    return function(values, residual, weight.shape, weight, bias, P)


def separate(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in three."""
    return F.layer_norm(F.dropout(values, P) + residual, weight.shape, weight, bias)


def fused_case(direction: str, shape: tuple[int, ...], dtype: torch.dtype, full_only: bool) -> Case:
    """Against the calls that it stands for."""
    case = function_case(
        op="dropout_add_layer_norm",
        direction=direction,
        shape="x".join(map(str, shape)),
        group=f"dropout_add_layer_norm {direction}",
        dtype=dtype,
        input_shapes=[shape, shape, shape[-1:], shape[-1:]],
        fast=fused,
        native=separate,
        full_only=full_only,
    )
    # Forward two tensors in and two out, the sum being one; so the backward.
    ways = 2 if direction == "training" else 1
    moved = ways * 4 * torch.Size(shape).numel() * dtype.itemsize
    return replace(case, bytes_moved=moved, error_ratio=no_error_ratio)


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    for direction in ("forward", "training"):
        for shape, quick_dtypes, full_dtypes in SHAPES if device == "cpu" else GPU_SHAPES:
            for dtype in quick_dtypes + full_dtypes:
                yield dropout_case(direction, shape, dtype, dtype not in quick_dtypes)
                yield fused_case(direction, shape, dtype, dtype not in quick_dtypes)
