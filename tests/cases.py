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


def rows_of(x: Tensor) -> Tensor:
    """An index into the rows of a matrix for each of them, some of them more than once."""
    return torch.ones_like(x[:, 0], dtype=torch.int64).cumsum(0).remainder(5)


def running_statistics(like: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and a variance of each channel that has an element in `like`, of its dtype."""
    steps = torch.ones_like(like).cumsum(-1) / like.shape[-1]
    return steps - 0.5, steps + 0.5


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
    # The targets depend on the input, so that both gradients count.
    FunctionCase("mse_loss", lambda m, x: m.mse_loss(x, x.square(), reduction="none")),
    FunctionCase("mse_loss_mean", lambda m, x: x * m.mse_loss(x, x.square())),
    FunctionCase("l1_loss", lambda m, x: m.l1_loss(x, x.square(), reduction="none")),
    FunctionCase("l1_loss_sum", lambda m, x: x * m.l1_loss(x, x.square(), reduction="sum")),
    FunctionCase("smooth_l1_loss", lambda m, x: m.smooth_l1_loss(x, 2 * x, reduction="none")),
    FunctionCase("huber_loss_mean", lambda m, x: x * m.huber_loss(x, -x, delta=1.5)),
    FunctionCase(
        "binary_cross_entropy",
        lambda m, x: m.binary_cross_entropy_with_logits(x, x.sigmoid(), reduction="none"),
    ),
    FunctionCase(
        "binary_cross_entropy_mean",
        lambda m, x: (
            x * m.binary_cross_entropy_with_logits(x, 1 - x, pos_weight=torch.ones_like(x[0]) * 3)
        ),
    ),
    FunctionCase(
        "embedding",
        lambda m, x: m.embedding(rows_of(x.flatten(0, -2)), x.flatten(0, -2)),
        (7, COLS),
    ),
    # of the activation functions one that needs its output, its input, and a parameter
    FunctionCase("sigmoid", lambda m, x: m.sigmoid(x)),
    FunctionCase("gelu", lambda m, x: m.gelu(x)),
    FunctionCase("elu", lambda m, x: m.elu(x, 0.7)),
    FunctionCase(
        "batch_norm",
        lambda m, x, w, b: m.batch_norm(x, None, None, w, b, True),
        (5, 5, COLS),
        parameter_shapes=((5,), (5,)),
    ),
    FunctionCase("batch_norm_plain", lambda m, x: m.batch_norm(x, None, None, training=True)),
    FunctionCase(
        "batch_norm_evaluation",
        lambda m, x, w, b: m.batch_norm(x, *running_statistics(w), w, b),
        (5, 5, COLS),
        parameter_shapes=((5,), (5,)),
    ),
    FunctionCase(
        "group_norm",
        lambda m, x, w, b: m.group_norm(x, 3, w, b),
        (6, 6, COLS),
        parameter_shapes=((6,), (6,)),
    ),
    FunctionCase("group_norm_plain", lambda m, x: m.group_norm(x, 1)),
)


# Losses of class indices, which are made of x; times x, to have its shape.
CASES += (
    FunctionCase(
        "cross_entropy",
        lambda m, x: x * m.cross_entropy(x, x.argmax(1), ignore_index=2, label_smoothing=0.1),
    ),
    FunctionCase(
        "cross_entropy_none",
        lambda m, x: x * m.cross_entropy(x, x.argmax(1), reduction="none").unsqueeze(1),
    ),
    FunctionCase(
        "nll_loss", lambda m, x: x * m.nll_loss(x, x.argmax(1), reduction="none").unsqueeze(1)
    ),
    FunctionCase("max_pool2d", lambda m, x: m.max_pool2d(x, 3, 1, 1)),
    FunctionCase("avg_pool2d", lambda m, x: m.avg_pool2d(x, 3, 1, 1)),
)


def all_cases(test: Callable[..., None]) -> Callable[..., None]:
    """Runs the test once for each case, as its argument `case`."""
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)(test)
