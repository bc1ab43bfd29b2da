"""layer_norm and rms_norm, both with their learned scale, on shapes of real models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.function_case import TensorFunction, function_case
from benchmarks.harness import Case

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
EPS = 1e-5

# shape (the last dimension is normalised), dtypes of the quick run, further ones of the full run
Shapes = list[tuple[tuple[int, ...], list[torch.dtype], list[torch.dtype]]]
LAYER_NORM_SHAPES: Shapes = [
    ((8192, 768), [FLOAT, BFLOAT], [HALF, DOUBLE]),  # BERT and GPT-2, 16 x 512 tokens
    ((512, 768), [FLOAT, BFLOAT], [HALF, DOUBLE]),  # one sequence, in cache
    ((4096, 1024), [FLOAT], [BFLOAT, HALF]),
    ((2048, 4096), [FLOAT], [BFLOAT, HALF]),  # the width of a 7B language model
    ((16384, 96), [FLOAT], [BFLOAT]),  # the first stage of Swin and ConvNeXt
    ((32, 197, 192), [FLOAT], [BFLOAT]),  # ViT-Tiny
    ((1, 768), [FLOAT], [BFLOAT]),  # one token of a decoder
]
RMS_NORM_SHAPES: Shapes = [
    ((8192, 768), [FLOAT], [BFLOAT, HALF]),
    ((2048, 4096), [FLOAT, BFLOAT], [HALF]),
    ((512, 768), [FLOAT], [BFLOAT, DOUBLE]),
    ((1, 4096), [], [FLOAT, BFLOAT]),
]


def layer_norm(function: TensorFunction) -> TensorFunction:
    """The function over the last dimension."""

    def call(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(values, weight.shape, weight, bias, EPS)

    return call


def rms_norm(function: TensorFunction) -> TensorFunction:
    """The function over the last dimension."""

    def call(values: Tensor, weight: Tensor) -> Tensor:
        return function(values, weight.shape, weight, EPS)

    return call


def rms_norm_written_out(values: Tensor, weight: Tensor) -> Tensor:
    """As most language models wrote it before torch had the function."""
    single = values.double() if values.dtype == DOUBLE else values.float()
    scale = torch.rsqrt(single.square().mean(-1, keepdim=True) + EPS)
    return (single * scale).to(values.dtype) * weight


def norm_case(
    op: str, direction: str, shape: tuple[int, ...], dtype: torch.dtype, full_only: bool
) -> Case:
    """One op on one shape; layer_norm has a bias, rms_norm has none."""
    adapt, parameters = (layer_norm, 2) if op == "layer_norm" else (rms_norm, 1)
    return function_case(
        op=op,
        direction=direction,
        shape="x".join(map(str, shape)),
        group=f"{op} {direction}",
        dtype=dtype,
        input_shapes=[shape] + [shape[-1:]] * parameters,
        fast=adapt(getattr(fastdl.functional, op)),
        native=adapt(getattr(F, op)),
        alternatives={"written out": rms_norm_written_out} if op == "rms_norm" else None,
        full_only=full_only,
    )


def cases() -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    for op, shapes in (("layer_norm", LAYER_NORM_SHAPES), ("rms_norm", RMS_NORM_SHAPES)):
        for direction in ("forward", "backward"):
            for shape, quick_dtypes, full_dtypes in shapes:
                for dtype in quick_dtypes + full_dtypes:
                    full_only = dtype not in quick_dtypes
                    yield norm_case(op, direction, shape, dtype, full_only)
