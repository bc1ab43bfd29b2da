"""What a call costs apart from the arithmetic: tiny tensors, functions and modules.

Reported is the difference to native torch in microseconds; the target is within one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.function_case import random_inputs
from benchmarks.harness import DEFAULT, FASTDL, Call, Case, Inputs, Prepare

ROWS, COLS = 4, 8
SHAPE = (ROWS, COLS)
IMAGE = (1, 2, 4, 4)

# Called as users call them; the shape, and the arguments after the input, by name
FUNCTIONS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("softmax", SHAPE, {"dim": -1}),
    ("log_softmax", SHAPE, {"dim": -1}),
    ("layer_norm", SHAPE, {"normalized_shape": (COLS,)}),
    ("rms_norm", SHAPE, {"normalized_shape": (COLS,)}),
    (
        "batch_norm",
        SHAPE,
        {
            "running_mean": torch.zeros(COLS),
            "running_var": torch.ones(COLS),
            "weight": torch.ones(COLS),
            "bias": torch.zeros(COLS),
            "training": True,
        },
    ),
    ("conv2d", IMAGE, {"weight": torch.ones(2, 2, 3, 3), "padding": 1}),
    ("max_pool2d", IMAGE, {"kernel_size": 2}),
    ("relu", SHAPE, {}),
    ("gelu", SHAPE, {}),
    ("dropout", SHAPE, {"p": 0.1}),
    ("cross_entropy", SHAPE, {"target": torch.arange(ROWS)}),
    ("mse_loss", SHAPE, {"target": torch.zeros(SHAPE)}),
    ("embedding", SHAPE, {"input": torch.arange(ROWS)}),  # of which `SHAPE` is the weight
]
MODULES: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = [
    ("Softmax", SHAPE, (-1,)),
    ("LogSoftmax", SHAPE, (-1,)),
    ("LayerNorm", SHAPE, (COLS,)),
    ("RMSNorm", SHAPE, (COLS,)),
    ("BatchNorm1d", SHAPE, (COLS,)),
    ("Conv2d", IMAGE, (2, 2, 3)),
    ("MaxPool2d", IMAGE, (2,)),
    ("ReLU", SHAPE, ()),
    ("GELU", SHAPE, ()),
    ("Dropout", SHAPE, (0.1,)),
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
        own = {
            key: value.to(inputs[0].device) if isinstance(value, Tensor) else value
            for key, value in arguments.items()
        }
        before = [own.pop("input")] if "input" in own else []
        return partial(getattr(source, name), *before, inputs[0], **own)

    return prepare


def forward_and_backward(prepare: Prepare) -> Prepare:
    """Build the graph and run through it."""

    def prepare_both(inputs: Inputs) -> Call:
        call = prepare(inputs)
        grad_output = torch.randn_like(cast("Tensor", call()))
        return lambda: torch.autograd.grad(cast("Tensor", call()), inputs, grad_output)

    return prepare_both


def overhead_case(
    name: str, shape: tuple[int, ...], direction: str, candidates: dict[str, Prepare]
) -> Case:
    """One tiny call."""
    requires_grad = direction != "call"
    elements = torch.Size(shape).numel()
    if direction == "call + backward":
        candidates = {side: forward_and_backward(prepare) for side, prepare in candidates.items()}

    def make_inputs(device: torch.device) -> Inputs:
        inputs = random_inputs([shape], torch.float32, device)
        return [tensor.requires_grad_(requires_grad) for tensor in inputs]

    return Case(
        op="overhead",
        direction=direction,
        shape=f"{name} {'x'.join(map(str, shape))}",
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
        for name, shape, options in FUNCTIONS:
            sides = {FASTDL: fastdl.functional, DEFAULT: F}
            functions = {key: function_like(side, name, options) for key, side in sides.items()}
            yield overhead_case(name, shape, direction, functions)
        for name, shape, arguments in MODULES:
            if direction == "call + backward":
                continue  # the functions tell already
            sides = {FASTDL: fastdl.nn, DEFAULT: nn}
            modules = {key: module_like(side, name, arguments) for key, side in sides.items()}
            yield overhead_case(name, shape, direction, modules)
