"""layer_norm and rms_norm, both with their learned scale, on shapes of real models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks import liger
from benchmarks.function_case import TensorFunction, function_case
from benchmarks.harness import LIGER, Case
from benchmarks.liger import if_installed

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
GPU_LAYER_NORM_SHAPES: Shapes = [
    ((512, 768), [BFLOAT], [FLOAT]),  # in cache
    ((65536, 768), [BFLOAT, FLOAT], [HALF]),  # BERT and GPT-2, 128 x 512 tokens
    ((32768, 1024), [BFLOAT], [FLOAT, HALF]),
    ((16384, 4096), [BFLOAT, FLOAT], [HALF, DOUBLE]),  # the width of a 7B language model
    ((8192, 8192), [BFLOAT, HALF], [FLOAT]),
    ((8192, 16384), [BFLOAT], [FLOAT]),
    ((2**20, 96), [BFLOAT], [FLOAT]),  # the first stage of Swin and ConvNeXt
]
GPU_RMS_NORM_SHAPES: Shapes = [
    ((65536, 768), [BFLOAT], [FLOAT]),
    ((16384, 4096), [BFLOAT, FLOAT], [HALF]),
    ((8192, 8192), [BFLOAT], [FLOAT, HALF]),
    ((8192, 16384), [BFLOAT], [FLOAT]),
    ((2**20, 128), [BFLOAT], [FLOAT]),  # heads of queries and keys
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


def native_alternatives(op: str, dtype: torch.dtype, device: str) -> dict[str, TensorFunction]:
    """What a user of torch could write instead, and on a GPU what could be installed."""
    others = {"written out": rms_norm_written_out} if op == "rms_norm" else {}
    if device != "cpu":
        function = if_installed(partial(getattr(liger, op), EPS), dtype)
        others |= {LIGER: function} if function else {}
    return others


def norm_case(
    op: str,
    direction: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    full_only: bool,
    device: str,
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
        alternatives=native_alternatives(op, dtype, device),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    on_cpu = device == "cpu"
    layer_norm_shapes = LAYER_NORM_SHAPES if on_cpu else GPU_LAYER_NORM_SHAPES
    rms_norm_shapes = RMS_NORM_SHAPES if on_cpu else GPU_RMS_NORM_SHAPES
    for op, shapes in (("layer_norm", layer_norm_shapes), ("rms_norm", rms_norm_shapes)):
        for direction in ("forward", "backward"):
            for shape, quick_dtypes, full_dtypes in shapes:
                for dtype in quick_dtypes + full_dtypes:
                    full_only = dtype not in quick_dtypes
                    yield norm_case(op, direction, shape, dtype, full_only, device)
