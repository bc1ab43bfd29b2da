"""Losses summed over elements, as a training step calls them: forward, and with the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.function_case import prepare_compiled, prepare_forward
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
BINARY = "binary_cross_entropy_with_logits"
LossFunction = Callable[[Tensor, Tensor], Tensor]

# function, name, options, shape, dtypes of the quick run, further dtypes of the full run
Shapes = list[
    tuple[str, str, dict[str, Any], tuple[int, ...], list[torch.dtype], list[torch.dtype]]
]
SHAPES: Shapes = [
    ("mse_loss", "", {}, (64, 3, 224, 224), [FLOAT], [BFLOAT, HALF, DOUBLE]),  # images
    ("mse_loss", "", {}, (256, 1024), [FLOAT], [BFLOAT]),  # in cache
    ("mse_loss", "", {}, (256, 10), [FLOAT], []),
    ("mse_loss", " none", {"reduction": "none"}, (64, 3, 224, 224), [FLOAT], []),
    ("l1_loss", "", {}, (64, 3, 224, 224), [FLOAT], [BFLOAT]),
    ("smooth_l1_loss", "", {}, (64, 3, 224, 224), [FLOAT], [BFLOAT]),
    ("smooth_l1_loss", "", {"beta": 0.11}, (4096, 4), [FLOAT], []),  # boxes of a detector
    ("huber_loss", "", {}, (64, 3, 224, 224), [FLOAT], [BFLOAT]),
    (BINARY, "", {}, (64, 1, 256, 256), [FLOAT], [BFLOAT, HALF, DOUBLE]),  # masks
    (BINARY, "", {}, (256, 1024), [FLOAT], []),
    (BINARY, " pos_weight", {"pos_weight": True}, (8192, 80), [FLOAT], [BFLOAT]),  # COCO
]
GPU_SHAPES: Shapes = [
    ("mse_loss", "", {}, (256, 3, 512, 512), [FLOAT, BFLOAT], [HALF]),
    ("mse_loss", " none", {"reduction": "none"}, (256, 3, 512, 512), [FLOAT], []),
    ("l1_loss", "", {}, (256, 3, 512, 512), [FLOAT], [BFLOAT]),
    ("smooth_l1_loss", "", {}, (256, 3, 512, 512), [FLOAT], []),
    ("huber_loss", "", {}, (256, 3, 512, 512), [FLOAT], []),
    (BINARY, "", {}, (256, 1, 512, 512), [FLOAT, BFLOAT], []),
    (BINARY, " pos_weight", {"pos_weight": True}, (1 << 20, 80), [FLOAT], []),
]


def loss_function(source: Any, name: str, options: dict[str, Any]) -> LossFunction:
    """The loss with its options; `pos_weight` stands for one of each class."""
    function = getattr(source, name)

    def call(values: Tensor, target: Tensor) -> Tensor:
        return function(values, target, **options)

    def call_with_weight(values: Tensor, target: Tensor) -> Tensor:
        return function(values, target, pos_weight=torch.ones_like(target[0]))

    return call_with_weight if "pos_weight" in options else call


def prepare_both(function: LossFunction) -> Prepare:
    """The loss and the gradient of its first argument, as one call."""

    def prepare(inputs: Inputs) -> Call:
        values, target, *grad_output = inputs
        leaf = values.detach().requires_grad_()
        return lambda: torch.autograd.grad(function(leaf, target), leaf, *grad_output)

    return prepare


def loss_case(
    op: str,
    name: str,
    options: dict[str, Any],
    direction: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    full_only: bool,
) -> Case:
    """One loss. It reads both inputs, and again to write the gradient (or the losses)."""
    prepare: Callable[[Any], Prepare] = prepare_forward if direction == "forward" else prepare_both
    sides = {FASTDL: fastdl.functional, DEFAULT: F}
    candidates = {
        side: prepare(loss_function(source, op, options)) for side, source in sides.items()
    }
    candidates[COMPILED] = prepare_compiled(loss_function(F, op, options), prepare)
    elements = torch.Size(shape).numel()
    none = options.get("reduction") == "none"
    tensors = 2 + none if direction == "forward" else 5 + 2 * none

    def make_inputs(device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        values, target, grad = (
            torch.randn(shape, generator=generator, device=device) for _ in range(3)
        )
        target = (target > 0).to(dtype) if op == BINARY else target.to(dtype)
        return [values.to(dtype), target, *[grad.to(dtype)] * (none and direction != "forward")]

    extra = " ".join(f"{key}={value}" for key, value in options.items() if key == "beta")
    return Case(
        op=op,
        direction=direction,
        shape=f"{'x'.join(map(str, shape))}{name} {extra}".strip(),
        dtype=dtype,
        group=f"{op} {direction}",
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=tensors * elements * dtype.itemsize,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    for op, name, options, shape, quick, full in SHAPES if device == "cpu" else GPU_SHAPES:
        for direction in ("forward", "forward + backward"):
            for dtype in quick + full:
                yield loss_case(op, name, options, direction, shape, dtype, dtype not in quick)
