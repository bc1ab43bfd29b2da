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
    """A mean and a variance of each channel that has an element in `like`, of its dtype.

    Multiples of 1/8, the same numbers in every dtype: else float64 would judge by others.
    """
    steps = torch.ones_like(like).cumsum(-1, dtype=torch.float32).remainder(8).div(8).to(like)
    return steps - 0.5, steps + 0.5


def every_third_pair(x: Tensor) -> Tensor:
    """A mask of the rows of x: of every row, and of none."""
    row = torch.ones_like(x[..., 0]).cumsum(-1).remainder(3) == 0
    return row.unsqueeze(-2) & ~row.unsqueeze(-1)


def weights_of(x: Tensor) -> Tensor:
    """Of the classes of x: 1, 2, 3 ..."""
    return torch.ones_like(x[0].flatten(1)[:, 0]).cumsum(0)


def rows_times(x: Tensor, factors: Tensor) -> Tensor:
    """Each row of x times the mean of the squares of its factors."""
    return x.flatten(0, -3) * factors.square().mean(-1, keepdim=True)


def scaled(x: Tensor, loss: Tensor) -> Tensor:
    """x times a sum over about its elements, made a mean: a sine of hundreds shows roundings."""
    return x * (loss / x.numel())


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
    FunctionCase("l1_loss_sum", lambda m, x: scaled(x, m.l1_loss(x, x.square(), reduction="sum"))),
    FunctionCase("smooth_l1_loss", lambda m, x: m.smooth_l1_loss(x, 2 * x, reduction="none")),
    FunctionCase("huber_loss_mean", lambda m, x: x * m.huber_loss(x, -x, delta=1.5)),
    FunctionCase(
        "binary_cross_entropy_with_logits",
        lambda m, x: m.binary_cross_entropy_with_logits(x, x.sigmoid(), reduction="none"),
    ),
    FunctionCase(
        "binary_cross_entropy_with_logits_mean",
        lambda m, x: (
            x * m.binary_cross_entropy_with_logits(x, 1 - x, pos_weight=torch.ones_like(x[0]) * 3)
        ),
    ),
    FunctionCase(
        "embedding",
        lambda m, x: m.embedding(rows_of(x.flatten(0, -2)), x.flatten(0, -2)),
        (7, COLS),
    ),
    FunctionCase("relu", lambda m, x: m.relu(x)),
    FunctionCase("sigmoid", lambda m, x: m.sigmoid(x)),
    FunctionCase("tanh", lambda m, x: m.tanh(x)),
    FunctionCase("gelu", lambda m, x: m.gelu(x)),
    FunctionCase("gelu_tanh", lambda m, x: m.gelu(x, approximate="tanh")),
    FunctionCase("silu", lambda m, x: m.silu(x)),
    FunctionCase("leaky_relu", lambda m, x: m.leaky_relu(x, 0.2)),
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
    # The class indices are made of x.
    FunctionCase(
        "cross_entropy",
        lambda m, x: x * m.cross_entropy(x, x.argmax(1), ignore_index=2, label_smoothing=0.1),
    ),
    FunctionCase(
        "cross_entropy_none",
        lambda m, x: x * m.cross_entropy(x, x.argmax(1), reduction="none").unsqueeze(1),
    ),
    FunctionCase(
        "cross_entropy_weighted",
        lambda m, x: scaled(x, m.cross_entropy(x, x.argmax(1), weights_of(x), reduction="sum")),
    ),
    FunctionCase(
        "cross_entropy_probabilities",
        lambda m, x: x * m.cross_entropy(x, x.detach().softmax(1)),
    ),
    FunctionCase(
        "linear_cross_entropy",
        lambda m, x, w: (
            x.flatten(0, -2)
            * m.linear_cross_entropy(
                x.flatten(0, -2), w, x.flatten(0, -2).argmax(-1) % 4, reduction="none"
            ).unsqueeze(-1)
        ),
        (6, COLS),
        parameter_shapes=((4, COLS),),
    ),
    FunctionCase(
        "nll_loss", lambda m, x: x * m.nll_loss(x, x.argmax(1), reduction="none").unsqueeze(1)
    ),
    FunctionCase("nll_loss_mean", lambda m, x: x * m.nll_loss(x, x.argmax(1))),
    # Divided, as initial weights are: sums then come close enough to 1 for fixed tolerances.
    FunctionCase(
        "conv1d",
        lambda m, x, w, b: m.conv1d(x.flatten(0, -3), w / 8, b / 8, padding=1),
        parameter_shapes=((5, 5, 3), (5,)),
    ),
    FunctionCase(
        "conv2d",
        lambda m, x, w, b: m.conv2d(x, w / 8, b / 8, padding=1),
        parameter_shapes=((3, 3, 3, 3), (3,)),
    ),
    FunctionCase(
        "conv2d_depthwise",
        lambda m, x, w: m.conv2d(x.flatten(0, -4), w / 8, None, 1, (2, 1), (2, 1), 4),
        (2, 4, 5, COLS),
        parameter_shapes=((4, 1, 3, 3),),
    ),
    FunctionCase(
        "scaled_dot_product_attention",
        lambda m, x: m.scaled_dot_product_attention(x, x.flip(-2), x.cos()),
    ),
    FunctionCase(
        "scaled_dot_product_attention_bias",
        lambda m, x, b: m.scaled_dot_product_attention(x, x.flip(-2), x.cos(), b),
        parameter_shapes=((5, 5),),
    ),
    FunctionCase(
        "scaled_dot_product_attention_mask",
        lambda m, x: m.scaled_dot_product_attention(
            x, x.flip(-2), x.cos(), every_third_pair(x), scale=0.3
        ),
    ),
    FunctionCase(
        "scaled_dot_product_attention_causal",
        lambda m, x: m.scaled_dot_product_attention(
            x, *(x[..., :2, :, :].sin(),) * 2, is_causal=True, enable_gqa=True
        ),
        (4, 5, COLS),
    ),
    FunctionCase("max_pool1d", lambda m, x: m.max_pool1d(x.flatten(0, -3), 3, 1, 1)),
    FunctionCase("max_pool2d", lambda m, x: m.max_pool2d(x, 3, 1, 1)),
    FunctionCase("avg_pool1d", lambda m, x: m.avg_pool1d(x.flatten(0, -3), 3, 1, 1)),
    FunctionCase("avg_pool2d", lambda m, x: m.avg_pool2d(x, 3, 1, 1)),
    FunctionCase(
        "adaptive_max_pool1d",
        lambda m, x: rows_times(x, m.adaptive_max_pool1d(x.flatten(0, -3), 4)),
    ),
    FunctionCase(
        "adaptive_max_pool2d",
        lambda m, x: x * m.adaptive_max_pool2d(x, (2, 4)).mean((-1, -2), keepdim=True),
    ),
    FunctionCase(
        "adaptive_avg_pool1d",
        lambda m, x: rows_times(x, m.adaptive_avg_pool1d(x.flatten(0, -3), 4)),
    ),
    FunctionCase(
        "adaptive_avg_pool2d",
        lambda m, x: x * m.adaptive_avg_pool2d(x, (2, 4)).square().mean((-1, -2), keepdim=True),
    ),
)


def all_cases(test: Callable[..., None]) -> Callable[..., None]:
    """Runs the test once for each case, as its argument `case`."""
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)(test)
