"""embedding on the vocabularies of language models: indices uniform, and as often as words are."""

from __future__ import annotations

from collections.abc import Iterator
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
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Case

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16

# rows and columns of the weight, shape of the indices, their distributions, dtypes of the quick run
# and further ones of the full run
Shapes = list[
    tuple[tuple[int, int], tuple[int, ...], list[str], list[torch.dtype], list[torch.dtype]]
]
SHAPES: Shapes = [
    ((50257, 768), (4, 1024), ["uniform", "zipf"], [FLOAT], [BFLOAT]),  # GPT-2 small
    ((30522, 768), (32, 512), ["zipf"], [FLOAT], [BFLOAT]),  # BERT
    ((10000, 128), (32, 20), ["uniform", "zipf"], [FLOAT], [BFLOAT]),
    ((1000, 16), (8192,), ["zipf"], [FLOAT], []),  # a category of a recommender
    ((512, 768), (1, 512), ["uniform"], [FLOAT], [BFLOAT]),  # positions
    ((32000, 4096), (1, 2048), ["zipf"], [], [FLOAT]),  # Llama
]
GPU_SHAPES: Shapes = [
    ((50257, 768), (32, 1024), ["uniform", "zipf"], [FLOAT, BFLOAT], []),
    ((128256, 4096), (4, 4096), ["zipf"], [BFLOAT], []),  # Llama 3 8B
    ((10000, 128), (32, 20), ["zipf"], [FLOAT], []),
    ((1 << 20, 64), (1 << 18,), ["uniform"], [FLOAT], []),  # a recommender
]


def make_indices(
    rows: int, shape: tuple[int, ...], distribution: str, device: torch.device
) -> Tensor:
    """The same ones every time; with "zipf" row n is 1 / n times as frequent as the first."""
    generator = torch.Generator(device).manual_seed(1)
    if distribution == "uniform":
        return torch.randint(rows, shape, generator=generator, device=device)
    uniform = torch.rand(shape, generator=generator, device=device)
    return (rows**uniform).long().sub_(1).clamp_(0, rows - 1)


def embedding_case(
    size: tuple[int, int],
    shape: tuple[int, ...],
    distribution: str,
    direction: str,
    dtype: torch.dtype,
    full_only: bool,
) -> Case:
    """Least traffic: forward reads and writes rows; backward reads them and writes all rows."""
    indices: dict[torch.device, Tensor] = {}

    def make(source: Any) -> TensorFunction:
        def call(weight: Tensor) -> Tensor:
            if weight.device not in indices:
                indices[weight.device] = make_indices(size[0], shape, distribution, weight.device)
            return source.embedding(indices[weight.device], weight)

        return call

    prepare = prepare_backward if direction == "backward" else prepare_forward
    candidates = {
        FASTDL: prepare(make(fastdl.functional)),
        DEFAULT: prepare(make(F)),
        COMPILED: prepare_compiled(make(F), prepare),
    }
    count = torch.Size(shape).numel()
    moved = (size[0] + count if direction == "backward" else 2 * count) * size[1]
    shapes = [size, (*shape, size[1])] if direction == "backward" else [size]
    return Case(
        op="embedding",
        direction=direction,
        shape=f"{size[0]}x{size[1]}, {'x'.join(map(str, shape))} {distribution}",
        dtype=dtype,
        group=f"embedding {direction}",
        make_inputs=partial(random_inputs, shapes, dtype),
        candidates=candidates,
        bytes_moved=moved * dtype.itemsize,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    for size, shape, distributions, quick, full in SHAPES if device == "cpu" else GPU_SHAPES:
        for direction in ("forward", "backward"):
            for distribution in distributions:
                for dtype in quick + full:
                    yield embedding_case(
                        size, shape, distribution, direction, dtype, dtype not in quick
                    )
