"""cross_entropy, nll_loss and linear_cross_entropy on shapes of real models.

"training" is forward and backward together: fastdl makes the gradient in the forward. Run as a
program, this prints the memory that a training step takes besides its inputs, each in a process of
its own: `python -m benchmarks.bench_cross_entropy`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.function_case import prepare_compiled
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
Loss = Callable[..., Tensor]

# shape of the logits, options, dtypes of the quick run, further dtypes of the full run
Shapes = list[tuple[tuple[int, ...], dict[str, Any], list[torch.dtype], list[torch.dtype]]]
SHAPES: Shapes = [
    ((128, 10), {}, [FLOAT], [BFLOAT]),  # digits
    ((1024, 1000), {}, [FLOAT, BFLOAT], [HALF, DOUBLE]),  # ImageNet
    ((1024, 1000), {"label_smoothing": 0.1}, [FLOAT], [BFLOAT]),
    ((1024, 1000), {"reduction": "none"}, [FLOAT], [BFLOAT]),
    ((512, 50257), {}, [FLOAT, BFLOAT], [HALF]),  # the vocabulary of GPT-2: odd
    ((2048, 32000), {}, [FLOAT], [BFLOAT]),  # of Llama
    ((8, 19, 256, 256), {}, [FLOAT], [BFLOAT]),  # segmentation of Cityscapes
    ((8192, 100), {}, [FLOAT], [BFLOAT]),
]
GPU_SHAPES: Shapes = [
    ((8192, 1000), {}, [BFLOAT], [FLOAT]),
    ((8192, 32000), {}, [BFLOAT, FLOAT], [HALF]),
    ((8192, 50257), {}, [BFLOAT], [FLOAT]),
    ((4096, 128256), {}, [BFLOAT], [FLOAT]),  # of Llama 3
    ((8192, 32000), {"label_smoothing": 0.1}, [BFLOAT], []),
    ((8192, 32000), {"reduction": "none"}, [BFLOAT], []),
    ((2**20, 10), {}, [FLOAT], [BFLOAT]),
    ((16, 19, 512, 1024), {}, [FLOAT, BFLOAT], []),
]
# rows, features, classes
LINEAR_SHAPES = [(2048, 768, 32000)]
LINEAR_GPU_SHAPES = [(8192, 4096, 128256)]


def linear_then_loss(x: Tensor, matrix: Tensor, target: Tensor) -> Tensor:
    """What linear_cross_entropy stands for."""
    return F.cross_entropy(F.linear(x, matrix), target)


def prepare_loss(loss: Loss, training: bool) -> Prepare:
    """The loss of the inputs, of which the last is the target; with all gradients in training."""

    def prepare(inputs: Inputs) -> Call:
        *tensors, target = inputs
        target = target.long()  # the check of accuracy makes it float64
        if not training:
            return partial(loss, *tensors, target)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]

        def step() -> list[Tensor]:
            value = loss(*leaves, target)
            return [value, *torch.autograd.grad(value.sum(), leaves)]

        return step

    return prepare


def loss_inputs(
    shapes: list[tuple[int, ...]],
    classes: int,
    target_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Inputs:
    """Random tensors of the shapes, and a target."""
    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes]
    target = torch.randint(0, classes, target_shape, generator=generator, device=device)
    return [*tensors, target]


def loss_case(
    op: str,
    shapes: list[tuple[int, ...]],
    classes: int,
    target_shape: tuple[int, ...],
    functions: tuple[Loss, Loss],
    training: bool,
    dtype: torch.dtype,
    *,
    label: str,
    flops: int = 0,
    full_only: bool = False,
) -> Case:
    """One loss. Least traffic: all tensors read once; in training their gradients written once."""
    candidates = {
        name: prepare_loss(function, training)
        for name, function in zip((FASTDL, DEFAULT), functions, strict=True)
    }
    candidates[COMPILED] = prepare_compiled(functions[1], partial(prepare_loss, training=training))
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    return Case(
        op=op,
        direction="training" if training else "forward",
        shape=label,
        dtype=dtype,
        group=f"{op} {'training' if training else 'forward'}"
        + (", other dim" if len(shapes[0]) > 2 else ", V >= 8k" if classes >= 8000 else ""),
        make_inputs=partial(loss_inputs, shapes, classes, target_shape, dtype),
        candidates=candidates,
        bytes_moved=(2 if training else 1) * elements * dtype.itemsize,
        flops=(3 if training else 1) * flops,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    for training in (False, True):
        for shape, options, quick, full in SHAPES if device == "cpu" else GPU_SHAPES:
            label = " ".join(["x".join(map(str, shape)), *(f"{k}={v}" for k, v in options.items())])
            for dtype in quick + full:
                yield loss_case(
                    "cross_entropy",
                    [shape],
                    shape[1],
                    (shape[0], *shape[2:]),
                    (
                        partial(fastdl.functional.cross_entropy, **options),
                        partial(F.cross_entropy, **options),
                    ),
                    training,
                    dtype,
                    label=label,
                    full_only=dtype not in quick,
                )
        for shape in ((8192, 100), (8, 19, 256, 256)):
            yield loss_case(
                "nll_loss",
                [shape],
                shape[1],
                (shape[0], *shape[2:]),
                (fastdl.functional.nll_loss, F.nll_loss),
                training,
                FLOAT,
                label="x".join(map(str, shape)),
            )
        for rows, features, classes in LINEAR_SHAPES if device == "cpu" else LINEAR_GPU_SHAPES:
            yield loss_case(
                "linear_cross_entropy",
                [(rows, features), (classes, features)],
                classes,
                (rows,),
                (fastdl.functional.linear_cross_entropy, linear_then_loss),
                training,
                FLOAT if device == "cpu" else BFLOAT,
                label=f"{rows}x{features} to {classes}",
                flops=2 * rows * features * classes,
            )


def most_memory() -> int:
    """The most bytes of memory that this process ever had (ru_maxrss begins with its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure_memory(number: int, which: str) -> None:
    """Prints the bytes that one training step adds to the most memory this process ever had."""
    case = [case for case in cases() if case.direction == "training"][number]
    step = case.candidates[which](case.make_inputs(torch.device("cpu")))
    before = most_memory()
    step()
    print(most_memory() - before)


def main() -> None:
    """Prints the table, or measures one entry of it."""
    if len(sys.argv) > 1:
        return measure_memory(int(sys.argv[1]), sys.argv[2])
    for number, case in enumerate(case for case in cases() if case.direction == "training"):
        if case.full_only or case.bytes_moved < 2**26:
            continue
        megabytes = []
        for which in (FASTDL, DEFAULT):
            command = [sys.executable, "-m", "benchmarks.bench_cross_entropy", str(number), which]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            megabytes.append(int(result.stdout) / 1e6)
        fast, native = megabytes
        print(f"{case.name}: fastdl {fast:.0f} MB, torch {native:.0f} MB, {fast / native:.2f}x")


if __name__ == "__main__":
    main()
