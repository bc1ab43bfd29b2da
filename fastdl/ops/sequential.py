"""torch.nn.Sequential that computes neighbours together where that gives the same."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.modules import module as torch_module

from fastdl.ops.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    batch_norm_relu,
    functional_arguments,
)

BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
_TORCH_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


def is_relu(module: torch.nn.Module) -> bool:
    """Whether it is exactly torch's or fastdl's ReLU, of no other class."""
    kind = type(module)
    return kind is torch.nn.ReLU or (
        issubclass(kind, torch.nn.ReLU) and kind.__module__.startswith("fastdl.ops.")
    )


def relus_after_batch_norms(
    sequential: torch.nn.Sequential,
    batch_norms: tuple[type[torch.nn.Module], ...] = BATCH_NORMS + _TORCH_BATCH_NORMS,
) -> list[tuple[str, torch.nn.Module]]:
    """The ReLUs directly behind a module of exactly one of these types, and their names."""
    children = list(sequential._modules.items())
    return [
        second
        for (_, first), second in pairwise(children)
        if type(first) in batch_norms and is_relu(second[1])
    ]


def no_global_hooks() -> bool:
    return not (
        torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )


def calls_forward_alone(module: torch.nn.Module) -> bool:
    """Whether calling the module does what its class's forward does and nothing else."""
    return not (
        module._backward_hooks
        or module._backward_pre_hooks
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


class Sequential(torch.nn.Sequential):
    """``torch.nn.Sequential`` that runs a BatchNorm of fastdl and the ReLU behind it in one pass.

    Where either has a hook (or all modules have one), they run one after the other; and under
    ``torch.compile`` or a tracer, which must see the modules.
    """

    def forward(self, input: Tensor) -> Tensor:
        children = list(self)
        fuses = no_global_hooks() and not (is_compiling() or torch._C._get_tracing_state())
        i = 0
        while i < len(children):
            first, second = children[i], children[i + 1] if i + 1 < len(children) else None
            if (
                fuses
                and isinstance(input, Tensor)
                and second is not None
                and isinstance(first, BATCH_NORMS)
                and type(first) in BATCH_NORMS
                and is_relu(second)
                and calls_forward_alone(first)
                and calls_forward_alone(second)
            ):
                input = batch_norm_relu(input, *functional_arguments(first, input))
                i += 2
            else:
                input = first(input)
                i += 1
        return input
