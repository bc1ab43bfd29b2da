"""Cases of functions of tensors, forward or backward, in one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from benchmarks.accuracy import measure_error_ratio
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

TensorFunction = Callable[..., torch.Tensor]


def prepare_forward(function: TensorFunction) -> Prepare:
    """Time the function alone, without a graph."""

    def prepare(inputs: Inputs) -> Call:
        return partial(function, *inputs)

    return prepare


def prepare_backward(function: TensorFunction) -> Prepare:
    """Time the backward alone: the graph is built once, the last input is the output's gradient."""

    def prepare(inputs: Inputs) -> Call:
        *primals, grad_output = inputs
        leaves = [tensor.detach().requires_grad_() for tensor in primals]
        output = function(*leaves)
        return partial(torch.autograd.grad, output, leaves, grad_output, retain_graph=True)

    return prepare


def prepare_training(function: TensorFunction) -> Prepare:
    """Time forward and backward together, for functions that leave work of one to the other."""

    def prepare(inputs: Inputs) -> Call:
        *primals, grad_output = inputs
        leaves = [tensor.detach().requires_grad_() for tensor in primals]
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad_output)

    return prepare


PREPARE = {"forward": prepare_forward, "backward": prepare_backward, "training": prepare_training}


def prepare_compiled(
    function: TensorFunction, prepare: Callable[[TensorFunction], Prepare]
) -> Prepare:
    """The same under torch.compile, which takes seconds to import: only if asked for."""

    def prepare_later(inputs: Inputs) -> Call:
        return prepare(torch.compile(function, dynamic=False))(inputs)

    return prepare_later


def random_inputs(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> Inputs:
    """Normal random numbers, the same ones every time."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


def function_case(
    *,
    op: str,
    direction: str,
    shape: str,
    group: str,
    dtype: torch.dtype,
    input_shapes: Sequence[tuple[int, ...]],
    fast: TensorFunction,
    native: TensorFunction,
    alternatives: Mapping[str, TensorFunction] | None = None,
    full_only: bool = False,
) -> Case:
    """A case whose output has the shape of its first input, as all normalisations have.

    Least traffic: forward reads the inputs and writes the output; backward reads the output's
    gradient and the inputs (or, as large, the output) and writes the inputs' gradients; training
    does both.
    """
    prepare = PREPARE[direction]
    functions = {FASTDL: fast, DEFAULT: native, **(alternatives or {})}
    candidates = {name: prepare(function) for name, function in functions.items()}
    candidates[COMPILED] = prepare_compiled(native, prepare)

    first = input_shapes[0]
    elements = [torch.Size(one).numel() for one in input_shapes]
    moved = (sum(elements) + elements[0]) * (direction != "backward")
    moved += (2 * sum(elements) + elements[0]) * (direction != "forward")

    def make_inputs(device: torch.device) -> Inputs:
        gradients = [first] * (direction != "forward")
        return random_inputs([*input_shapes, *gradients], dtype, device)

    return Case(
        op=op,
        direction=direction,
        shape=shape,
        dtype=dtype,
        group=group,
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=moved * dtype.itemsize,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )
