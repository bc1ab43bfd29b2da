"""One step of each optimizer on the parameter lists of real models, and clipping by the norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.harness import (
    COMPILED,
    DEFAULT,
    FASTDL,
    Call,
    Case,
    Inputs,
    Prepare,
    no_error_ratio,
)
from fastdl.ops.optimizer import MultiTensorStep

FLOAT, BFLOAT = torch.float32, torch.bfloat16
Shape = tuple[int, ...]
OptimizerClass = Callable[..., torch.optim.Optimizer]

ERROR_STEPS = 4
ERROR_ELEMENTS = 1 << 20
# Compiling a step takes a second for every few tensors and shows nothing new for longer lists.
MAX_COMPILED_TENSORS = 64

MAX_NORM = 1.0
MOMENTUM = {"momentum": 0.9}
CENTERED = {"momentum": 0.9, "centered": True}


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


def prepare_step(optimizer_class: OptimizerClass, clips: bool = False, **settings: Any) -> Prepare:
    """A call makes one step and returns the parameters; the inputs are parameters, gradients.

    One that clips does so as the class can: in its step, or before it with torch's function.
    """
    is_fast = issubclass(cast("type", optimizer_class), MultiTensorStep)

    def prepare(inputs: Inputs) -> Call:
        parameters, optimizer = make_optimizer(optimizer_class, inputs, settings)
        options: dict[str, Any] = {"max_norm": MAX_NORM} if clips and is_fast else {}

        def step() -> list[Tensor]:
            if clips and not is_fast:
                torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step(**options)
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


def number_of_states(op: str, settings: dict[str, Any]) -> int:
    """Tensors that the optimizer keeps for each parameter."""
    with_momentum = settings.get("momentum", 0) > 0
    return {
        "Adam": 2 + bool(settings.get("amsgrad")),
        "AdamW": 2 + bool(settings.get("amsgrad")),
        "SGD": int(with_momentum),
        "Adagrad": 1,
        "RMSprop": 1 + with_momentum + bool(settings.get("centered")),
    }[op]


def prepare_clip(clip: Callable[..., Tensor], **settings: Any) -> Prepare:
    """A call clips all gradients and returns them; the inputs are gradients."""

    def prepare(inputs: Inputs) -> Call:
        parameters = [torch.zeros_like(tensor).requires_grad_() for tensor in inputs]
        for parameter, gradient in zip(parameters, inputs, strict=True):
            parameter.grad = gradient.clone()

        max_norm = MAX_NORM

        def call() -> list[Tensor]:
            nonlocal max_norm
            clip(parameters, max_norm, **settings)
            max_norm *= 0.999  # so that there is something to clip each time
            return [cast("Tensor", parameter.grad) for parameter in parameters]

        return call

    return prepare


def clip_case(name: str, shapes: Sequence[Shape], dtype: torch.dtype = FLOAT) -> Case:
    """clip_grad_norm_ alone: reads all gradients, then reads and writes them."""
    native = torch.nn.utils.clip_grad_norm_
    prepares = {
        FASTDL: prepare_clip(fastdl.optim.clip_grad_norm_),
        DEFAULT: prepare_clip(native),
        "foreach=False": prepare_clip(native, foreach=False),
    }
    elements = sum(torch.Size(shape).numel() for shape in shapes)

    def make_inputs(device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        return [torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes]

    return Case(
        op="clip_grad_norm_",
        direction="call",
        shape=f"{name}, {elements / 1e6:.3g}M in {len(shapes)}",
        dtype=dtype,
        group="clip_grad_norm_",
        make_inputs=make_inputs,
        candidates=prepares,
        bytes_moved=3 * elements * dtype.itemsize,
        error_ratio=lambda inputs: measure_error_ratio(
            prepares[FASTDL], prepares[DEFAULT], inputs[:10]
        ),
        in_place=True,
    )


def step_case(
    op: str,
    name: str,
    shapes: Sequence[Shape],
    dtype: torch.dtype = FLOAT,
    full_only: bool = False,
    device: str = "cpu",
    as_called: bool = False,
    clips: bool = False,
    **settings: Any,
) -> Case:
    """One list of parameters. A step reads parameter, gradient and states, and writes all but one.

    For Adam without amsgrad these are seven tensors: 28 bytes a float32 parameter. A step that
    `clips` by the total norm reads the gradient once more.
    """
    native: OptimizerClass = getattr(torch.optim, op)
    prepares = {
        FASTDL: prepare_step(getattr(fastdl.optim, op), clips, **settings),
        DEFAULT: prepare_step(native, clips, **settings),
        "foreach=True": prepare_step(native, clips, foreach=True, **settings),
    }
    if op != "RMSprop":
        prepares["fused=True"] = prepare_step(native, clips, fused=True, **settings)
    if device != "cpu":
        del prepares["foreach=True"]  # the default there
    if len(shapes) <= MAX_COMPILED_TENSORS and not clips:
        prepares[COMPILED] = prepare_compiled_step(native, **settings)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    tensors = 3 + 2 * number_of_states(op, settings) + clips

    def make_inputs(device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        return [
            torch.randn(shape, generator=generator, device=device).to(dtype)
            for shape in (*shapes, *shapes)
        ]

    return Case(
        op=op,
        direction="clip + step" if clips else "step",
        shape=f"{name}, {elements / 1e6:.3g}M in {len(shapes)}",
        dtype=dtype,
        group=f"{op} {'clip + ' if clips else ''}step{', as called' if as_called else ''}",
        make_inputs=make_inputs,
        candidates=prepares,
        bytes_moved=tensors * elements * dtype.itemsize,
        error_ratio=no_error_ratio  # torch's clipping changes the gradients
        if clips
        else partial(error_ratio, prepares[FASTDL], prepares[DEFAULT]),
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
    yield gpu("AdamW", "GPT-2 small", gpt2, clips=True)
    for op, settings in (("SGD", MOMENTUM), ("Adagrad", {}), ("RMSprop", {})):
        yield gpu(op, "ResNet-50", resnet, **settings)
        yield gpu(op, "GPT-2 small", gpt2, **settings)
    yield gpu("RMSprop", "ResNet-50 centered", resnet, **CENTERED)
    yield gpu("SGD", "tiny tensors as called", tiny, as_called=True, **MOMENTUM)
    yield clip_case("GPT-2 small", gpt2)


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
    layers = gpt2_shapes(layers=4, vocabulary=0)
    for op, settings in (("SGD", MOMENTUM), ("Adagrad", {}), ("RMSprop", {})):
        yield step_case(op, "ResNet-50", resnet, **settings)
        yield step_case(op, "GPT-2 of 4 layers", layers, **settings)
        yield step_case(op, "GPT-2 small", gpt2_shapes(12, 50257), full_only=True, **settings)
        yield step_case(op, "tiny tensors", tiny, **settings)
        yield step_case(op, "ResNet-50", resnet, dtype=BFLOAT, full_only=True, **settings)
    yield step_case("SGD", "ResNet-50 without momentum", resnet)
    yield step_case("SGD", "ResNet-50 nesterov", resnet, full_only=True, nesterov=True, **MOMENTUM)
    yield step_case("RMSprop", "ResNet-50 centered", resnet, **CENTERED)
    yield step_case("AdamW", "GPT-2 of 4 layers", layers, clips=True)
    yield step_case("SGD", "ResNet-50", resnet, clips=True, **MOMENTUM)
    yield step_case("AdamW", "tiny tensors", tiny, clips=True)
    yield clip_case("ResNet-50", resnet)
    yield clip_case("GPT-2 of 4 layers", layers)
    yield clip_case("tiny tensors", tiny)
