"""What a call costs apart from the arithmetic: tiny tensors, functions and modules.

Reported is the difference to native torch in microseconds; the target is within one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.function_case import random_inputs
from benchmarks.harness import DEFAULT, FASTDL, Call, Case, Inputs, Prepare

SHAPE = (4, 8)
Function = Callable[[Tensor], Any]

# Called as users call them; the arguments after the input, by name
FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"dim": -1}),
    ("log_softmax", {"dim": -1}),
    ("layer_norm", {"normalized_shape": SHAPE[-1:]}),
    ("rms_norm", {"normalized_shape": SHAPE[-1:]}),
    ("relu", {}),
    ("gelu", {}),
    ("dropout", {"p": 0.1}),
]
MODULES: list[tuple[str, tuple[Any, ...]]] = [
    ("Softmax", (-1,)),
    ("LogSoftmax", (-1,)),
    ("LayerNorm", (SHAPE[-1],)),
    ("RMSNorm", (SHAPE[-1],)),
    ("ReLU", ()),
    ("GELU", ()),
    ("Dropout", (0.1,)),
]


def module_like(source: Any, name: str, arguments: tuple[Any, ...]) -> Prepare:
    """A module made when the case is prepared; its parameters want a gradient as its input does."""

    def prepare(inputs: Inputs) -> Call:
        module: nn.Module = getattr(source, name)(*arguments).to(inputs[0].device)
        return partial(module.requires_grad_(inputs[0].requires_grad), inputs[0])

    return prepare


def function_like(source: Any, name: str, arguments: dict[str, Any]) -> Prepare:
    """A plain call of the function."""

    def prepare(inputs: Inputs) -> Call:
        return partial(getattr(source, name), inputs[0], **arguments)

    return prepare


def forward_and_backward(prepare: Prepare) -> Prepare:
    """Build the graph and run through it."""

    def prepare_both(inputs: Inputs) -> Call:
        call, (values, grad_output) = prepare(inputs[:1]), inputs
        return lambda: torch.autograd.grad(cast("Tensor", call()), values, grad_output)

    return prepare_both


def overhead_case(name: str, direction: str, candidates: dict[str, Prepare]) -> Case:
    """One tiny call."""
    requires_grad = direction != "call"
    elements = torch.Size(SHAPE).numel()
    if direction == "call + backward":
        candidates = {side: forward_and_backward(prepare) for side, prepare in candidates.items()}

    def make_inputs(device: torch.device) -> Inputs:
        shapes = [SHAPE, SHAPE] if direction == "call + backward" else [SHAPE]
        values, *grad_output = random_inputs(shapes, torch.float32, device)
        return [values.requires_grad_(requires_grad), *grad_output]

    return Case(
        op="overhead",
        direction=direction,
        shape=f"{name} {'x'.join(map(str, SHAPE))}",
        dtype=torch.float32,
        group=f"overhead, {direction}",
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=2 * 4 * elements,
        in_place=True,
        overhead=True,
        host_clock=True,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Functions and modules, without a graph, with one and with a run through it; on any device."""
    for direction in ("call", "call with grad", "call + backward"):
        for name, options in FUNCTIONS:
            fast = function_like(fastdl.functional, name, options)
            yield overhead_case(
                name, direction, {FASTDL: fast, DEFAULT: function_like(F, name, options)}
            )
        for name, arguments in MODULES:
            if direction == "call + backward":
                continue  # the functions tell already
            fast = module_like(fastdl.nn, name, arguments)
            yield overhead_case(
                name, direction, {FASTDL: fast, DEFAULT: module_like(nn, name, arguments)}
            )
