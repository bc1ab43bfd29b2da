"""The elementwise losses where values are special: infinities, NaN, signed zeros, thresholds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import fastdl
from tests.compare import assert_as_accurate_as_torch, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name
from tests.test_elementwise_loss import BINARY, LOSSES, REDUCTIONS, loss

all_losses = pytest.mark.parametrize("name", LOSSES)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)

VALUES = (-math.inf, -100.0, -1.0, -0.5, -0.0, 0.0, 1e-5, 0.5, 1.0, 30.0, math.inf, math.nan)
PROBABILITIES = (0.0, -0.0, 1e-5, 0.25, 0.5, 1.0, math.nan)


def all_pairs(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every value with every other one, or with every probability."""
    others = PROBABILITIES if name == BINARY else VALUES
    pairs = torch.tensor(list(itertools.product(VALUES, others)), dtype=torch.float64).to(dtype)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


@pytest.mark.every_isa
@all_losses
@all_dtypes
def test_special_values_are_treated_like_torch(name: str, dtype: torch.dtype) -> None:
    x, target = all_pairs(name, dtype)
    check_function(loss(name, "none"), x, target)
    for shift in range(1, 17):  # every position within a vector
        check_function(loss(name, "none"), x.roll(shift), target.roll(shift), label=f"{shift}")


@all_losses
@all_dtypes
def test_special_gradients_are_treated_like_torch(name: str, dtype: torch.dtype) -> None:
    x, target = all_pairs(name, dtype)
    kept = x.isfinite() & target.isfinite()
    x, target = x[kept], target[kept]
    # Where torch's sigmoid(x) - t has been rounded to 0, infinity times it is NaN.
    for value in (0.0, -0.0, math.nan, 1e-3, 300.0, *[math.inf] * (name != BINARY)):
        grad = torch.full_like(x, value)
        check_function(loss(name, "none"), x, target, grad_output=grad, label=f"{value}")
        grad = torch.tensor(value, dtype=dtype)
        check_function(loss(name, "mean"), x, target, grad_output=grad, label=f"mean {value}")


@pytest.mark.every_isa
@all_losses
@all_dtypes
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("of_target", [False, True])
def test_gradients_of_infinities_and_nan_are_torchs(
    name: str, dtype: torch.dtype, reduction: str, of_target: bool
) -> None:
    # Of a loss that is not finite itself too, and where the gradient of the input is all there is.
    pairs = all_pairs(name, dtype)
    half = torch.full((1,), 0.5, dtype=dtype)
    weights = [{}, {"weight": half}, {"pos_weight": 5 * half}] if name == BINARY else [{}]
    for options in weights:
        results = []
        for module, used in (
            (fastdl.functional, dtype),
            (torch.nn.functional, dtype),
            (torch.nn.functional, torch.float64),
        ):
            x, target = (tensor.detach().to(used) for tensor in pairs)
            leaves = [x.requires_grad_(), target.requires_grad_()][: 1 + of_target]
            target.requires_grad_(of_target)
            own = {key: value.to(used) for key, value in options.items()}
            output = loss(name, reduction, **own)(module, x, target)
            results.append(torch.autograd.grad(output, leaves, torch.ones_like(output)))
        for gradients in zip(*results, strict=True):
            assert_as_accurate_as_torch(*gradients, gradient=True, label=f"{list(options)}")


@all_losses
@all_dtypes
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_special_value_reaches_the_sum(name: str, dtype: torch.dtype, value: float) -> None:
    for size, position in ((5, 4), (67, 0), (1000, 777), (20_000, 19_999)):
        x, target = torch.ones(size, dtype=dtype), torch.full((size,), 0.5, dtype=dtype)
        x[position] = value
        for reduction in ("mean", "sum"):
            outputs = [
                loss(name, reduction)(module, x, target)
                for module in (fastdl.functional, torch.nn.functional)
            ]
            torch.testing.assert_close(*outputs, equal_nan=True, rtol=1e-2, atol=0)


@all_dtypes
def test_at_and_next_to_the_threshold(dtype: torch.dtype) -> None:
    d = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    near = torch.cat([d, d * (1 + torch.finfo(dtype).eps), d * (1 - torch.finfo(dtype).eps)])
    x = torch.cat([near, -near]).to(dtype)
    for name, option in (("smooth_l1_loss", "beta"), ("huber_loss", "delta")):
        check_function(loss(name, "none", **{option: 0.5}), x, torch.zeros_like(x))


@all_dtypes
def test_large_logits_neither_overflow_nor_cancel(dtype: torch.dtype) -> None:
    x = torch.linspace(-1000, 1000, 401, dtype=torch.float64).to(dtype)
    for value in (0.0, 1.0, 0.3):
        target = torch.full_like(x, value)
        check_function(loss(BINARY, "none"), x, target, label=f"{value}")
        weighted = loss(BINARY, "none", pos_weight=torch.full((1,), 3.5, dtype=dtype))
        check_function(weighted, x, target, label=f"weighted {value}")
    small = fastdl.functional.binary_cross_entropy_with_logits(
        torch.tensor([-50.0, -80.0]), torch.zeros(2), reduction="none"
    )
    torch.testing.assert_close(small, torch.tensor([-50.0, -80.0]).exp(), rtol=1e-5, atol=0)


@all_losses
def test_means_of_nothing_are_torchs(name: str) -> None:
    x = torch.zeros(0, 3)
    for reduction in ("mean", "sum"):
        assert_same_outcome(
            lambda: loss(name, reduction)(fastdl.functional, x, x),  # noqa: B023
            lambda: loss(name, reduction)(torch.nn.functional, x, x),  # noqa: B023
        )


@pytest.mark.slow
@all_losses
def test_a_mean_over_more_than_2_to_the_31_elements(name: str) -> None:
    x = torch.full((2**31 + 11,), 1.5, dtype=torch.bfloat16)
    x[-7:] = 2.5
    target = torch.full((1,), 0.5, dtype=torch.bfloat16).expand_as(x).contiguous()
    got = loss(name, "sum")(fastdl.functional, x, target)
    head, tail = (
        loss(name, "sum")(fastdl.functional, x[i].double(), target[i].double())
        for i in (slice(1), slice(-7, None))
    )
    expected = head * (len(x) - 7) + tail
    torch.testing.assert_close(got.double(), expected, rtol=4e-3, atol=0)
