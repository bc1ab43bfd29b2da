"""One step of Adam and AdamW on the parameter lists of real models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

FLOAT, BFLOAT = torch.float32, torch.bfloat16
Shape = tuple[int, ...]
OptimizerClass = Callable[..., torch.optim.Optimizer]

ERROR_STEPS = 4
ERROR_ELEMENTS = 1 << 20
# Compiling a step takes a second for every few tensors and shows nothing new for longer lists.
MAX_COMPILED_TENSORS = 64


def resnet50_shapes() -> list[Shape]:
    """All 161 parameters of ResNet-50, 25.6 million elements."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        outputs = 4 * width
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            if block == 0:
                convolutions.append((outputs, inputs, 1, 1))  # the shortcut changes the width
            for kernel in convolutions:
                shapes += [kernel, kernel[:1], kernel[:1]]  # batch norm: scale and shift
            inputs = outputs
    return [*shapes, (1000, inputs), (1000,)]


def gpt2_shapes(layers: int, vocabulary: int) -> list[Shape]:
    """GPT-2 small has 12 layers and a vocabulary of 50257: 148 parameters, 124 million elements."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    embeddings: list[Shape] = [(vocabulary, width), (1024, width)] if vocabulary else []
    return embeddings + (norm + attention + norm + mlp) * layers + norm


def billion_shapes() -> list[Shape]:
    """A language model of 16 layers, 2048 wide, such as Llama 3.2 1B: 146 parameters, 1.24e9."""
    width, hidden, keys = 2048, 8192, 512
    layer: list[Shape] = [(width, width), (keys, width), (keys, width), (width, width), (width,)]
    layer += [(hidden, width), (hidden, width), (width, hidden), (width,)]
    return [(128256, width), *layer * 16, (width,)]


def prepare_step(optimizer_class: OptimizerClass, **settings: Any) -> Prepare:
    """A call makes one step and returns the parameters; the inputs are parameters, gradients."""

    def prepare(inputs: Inputs) -> Call:
        parameters, optimizer = make_optimizer(optimizer_class, inputs, settings)

        def step() -> list[Tensor]:
            optimizer.step()
            return parameters

        return step

    return prepare


def prepare_compiled_step(optimizer_class: OptimizerClass, **settings: Any) -> Prepare:
    """The native step under torch.compile."""

    def prepare(inputs: Inputs) -> Call:
        _, optimizer = make_optimizer(optimizer_class, inputs, settings)
        return torch.compile(optimizer.step)

    return prepare


def make_optimizer(
    optimizer_class: OptimizerClass, inputs: Inputs, settings: dict[str, Any]
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Parameters of its own, gradients shared with the other candidates, which only read them."""
    half = len(inputs) // 2
    parameters = [tensor.clone().requires_grad_() for tensor in inputs[:half]]
    for parameter, gradient in zip(parameters, inputs[half:], strict=True):
        parameter.grad = gradient
    return parameters, optimizer_class(parameters, lr=1e-4, **settings)


def parameters_after_steps(call: Call) -> list[Tensor]:
    """Steps with gradients that change, or Adam would only ever see their sign."""
    for _ in range(ERROR_STEPS):
        parameters = cast("list[Tensor]", call())
        for parameter in parameters:
            gradient = cast("Tensor", parameter.grad)
            gradient.copy_(gradient.roll(1) * -0.7)
    return [parameter.detach() for parameter in parameters]


def error_ratio(fast: Prepare, native: Prepare, inputs: Inputs) -> float | None:
    """Over the first parameters only: they all take the same path."""
    half, elements, taken = len(inputs) // 2, 0, 0
    while taken < half and elements < ERROR_ELEMENTS:
        elements += inputs[taken].numel()
        taken += 1
    some = inputs[:taken] + inputs[half : half + taken]
    return measure_error_ratio(fast, native, some, parameters_after_steps)


def step_case(
    op: str,
    name: str,
    shapes: Sequence[Shape],
    dtype: torch.dtype = FLOAT,
    full_only: bool = False,
    device: str = "cpu",
    as_called: bool = False,
    **settings: Any,
) -> Case:
    """One list of parameters. A step reads parameter, gradient and states, and writes all but one.

    Without amsgrad these are seven tensors: 28 bytes a float32 parameter.
    """
    native: OptimizerClass = getattr(torch.optim, op)
    prepares = {
        FASTDL: prepare_step(getattr(fastdl.optim, op), **settings),
        DEFAULT: prepare_step(native, **settings),
        "foreach=True": prepare_step(native, foreach=True, **settings),
        "fused=True": prepare_step(native, fused=True, **settings),
    }
    if device != "cpu":
        del prepares["foreach=True"]  # the default there
    if len(shapes) <= MAX_COMPILED_TENSORS:
        prepares[COMPILED] = prepare_compiled_step(native, **settings)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    tensors = 9 if settings.get("amsgrad") else 7

    def make_inputs(device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        return [
            torch.randn(shape, generator=generator, device=device).to(dtype)
            for shape in (*shapes, *shapes)
        ]

    return Case(
        op=op,
        direction="step",
        shape=f"{name}, {elements / 1e6:.3g}M in {len(shapes)}",
        dtype=dtype,
        group=f"{op} step, as called" if as_called else f"{op} step",
        make_inputs=make_inputs,
        candidates=prepares,
        bytes_moved=tensors * elements * dtype.itemsize,
        error_ratio=partial(error_ratio, prepares[FASTDL], prepares[DEFAULT]),
        in_place=True,
        full_only=full_only,
        host_clock=as_called,
    )


def gpu_cases() -> Iterator[Case]:
    """Time of the kernels; those "as called" are timed with the work of the host."""
    resnet, gpt2, tiny = resnet50_shapes(), gpt2_shapes(12, 50257), [(64,)] * 200
    gpu = partial(step_case, device="cuda")
    yield gpu("AdamW", "ResNet-50", resnet)
    yield gpu("AdamW", "GPT-2 small", gpt2)
    yield gpu("AdamW", "GPT-2 small", gpt2, dtype=BFLOAT)
    yield gpu("AdamW", "GPT-2 small capturable", gpt2, full_only=True, capturable=True)
    yield gpu("AdamW", "GPT-2 small amsgrad", gpt2, full_only=True, amsgrad=True)
    yield gpu("AdamW", "1B model", billion_shapes(), dtype=BFLOAT)
    yield gpu("AdamW", "1B model", billion_shapes(), full_only=True)
    yield gpu("AdamW", "one tensor", [(100_000_000,)])
    yield gpu("AdamW", "tiny tensors", tiny)
    yield gpu("AdamW", "ResNet-50 as called", resnet, as_called=True)
    yield gpu("AdamW", "tiny tensors as called", tiny, as_called=True)
    yield gpu("AdamW", "2000 tensors as called", [(1024,)] * 2000, as_called=True)
    yield gpu("Adam", "ResNet-50", resnet)


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    if device != "cpu":
        yield from gpu_cases()
        return
    resnet, tiny, single = resnet50_shapes(), [(64,)] * 200, [(10_000_000,)]
    yield step_case("AdamW", "ResNet-50", resnet)
    yield step_case("AdamW", "GPT-2 of 4 layers", gpt2_shapes(layers=4, vocabulary=0))
    yield step_case("AdamW", "GPT-2 small", gpt2_shapes(12, 50257), full_only=True)
    yield step_case("AdamW", "tiny tensors", tiny)
    yield step_case("AdamW", "one tensor", single)
    yield step_case("AdamW", "ResNet-50", resnet, dtype=BFLOAT)
    yield step_case("AdamW", "ResNet-50 amsgrad", resnet, full_only=True, amsgrad=True)
    yield step_case("Adam", "ResNet-50", resnet)
    yield step_case("Adam", "tiny tensors", tiny)
    yield step_case("Adam", "one tensor", single, full_only=True)
    yield step_case("Adam", "one tensor amsgrad", single, amsgrad=True)
