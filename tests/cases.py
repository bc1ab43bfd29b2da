"""One small case per function and variant, for the tests that all functions must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fastdl
from tests.compare import Call
from tests.tensors import random_tensor

COLS = 19


@dataclass(frozen=True)
class FunctionCase:
    """A call of one function on an input of `shape` and on parameters of `parameter_shapes`."""

    name: str
    call: Call  # call(module, input, *parameters)
    shape: tuple[int, ...] = (3, 5, COLS)
    parameter_shapes: tuple[tuple[int, ...], ...] = ()

    def tensors(
        self, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
    ) -> list[Tensor]:
        """Fresh random input and parameters."""
        input = random_tensor(self.shape, dtype, layout)
        return [input, *(random_tensor(shape, dtype) for shape in self.parameter_shapes)]

    def fast(self, *tensors: Tensor) -> Tensor:
        return self.call(fastdl.functional, *tensors)

    def native(self, *tensors: Tensor) -> Tensor:
        return self.call(torch.nn.functional, *tensors)

    def leaves(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Fresh tensors that require gradients."""
        return [tensor.requires_grad_() for tensor in self.tensors(dtype)]


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaves with the values and requires_grad of these, sharing no memory."""
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


CASES = (
    FunctionCase("softmax", lambda m, x: m.softmax(x, dim=-1)),
    FunctionCase("softmax_columns", lambda m, x: m.softmax(x, dim=0), (7, COLS)),
    FunctionCase("log_softmax", lambda m, x: m.log_softmax(x, dim=-1)),
    FunctionCase("log_softmax_columns", lambda m, x: m.log_softmax(x, dim=1)),
    FunctionCase("softmin", lambda m, x: m.softmin(x, dim=-1)),
    FunctionCase(
        "layer_norm",
        lambda m, x, w, b: m.layer_norm(x, (COLS,), w, b, 1e-5),
        parameter_shapes=((COLS,), (COLS,)),
    ),
    FunctionCase("layer_norm_plain", lambda m, x: m.layer_norm(x, (5, COLS), eps=1e-5)),
    FunctionCase(
        "layer_norm_bias",
        lambda m, x, b: m.layer_norm(x, (COLS,), None, b, 1e-5),
        parameter_shapes=((COLS,),),
    ),
    FunctionCase(
        "rms_norm",
        lambda m, x, w: m.rms_norm(x, (COLS,), w, 1e-6),
        parameter_shapes=((COLS,),),
    ),
    FunctionCase("rms_norm_plain", lambda m, x: m.rms_norm(x, (5, COLS), eps=1e-6)),
    FunctionCase("max_pool2d", lambda m, x: m.max_pool2d(x, 3, 1, 1)),
    FunctionCase("avg_pool2d", lambda m, x: m.avg_pool2d(x, 3, 1, 1)),
)


def all_cases(test: Callable[..., None]) -> Callable[..., None]:
    """Runs the test once for each case, as its argument `case`."""
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)(test)
