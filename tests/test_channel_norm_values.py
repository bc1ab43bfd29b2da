"""batch_norm and group_norm of special values, and of more than 2^31."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from tests import reference
from tests.compare import (
    Call,
    assert_as_accurate_as_torch,
    assert_same_bits,
    check_function,
)
from tests.tensors import DTYPES, LAYOUTS, dtype_name, random_tensor

LAST = ("contiguous", "channels_last")
GROUPS = 2


def batch_norm(
    m: ModuleType, x: Tensor, w: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    return m.batch_norm(x, None, None, w, b, True)


def batch_norm_relu(
    m: ModuleType, x: Tensor, w: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    return (
        F.relu(batch_norm(m, x, w, b)) if m is F else m.batch_norm_relu(x, None, None, w, b, True)
    )


def group_norm(
    m: ModuleType, x: Tensor, w: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    return m.group_norm(x, GROUPS, w, b)


all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
both = pytest.mark.parametrize("norm", [batch_norm, group_norm])
with_relu = pytest.mark.parametrize("norm", [batch_norm, batch_norm_relu, group_norm])
layouts = pytest.mark.parametrize("layout", LAST)


@pytest.mark.every_isa
@all_dtypes
@with_relu
@layouts
def test_special_values_stay_in_their_channel_or_group(
    dtype: torch.dtype, norm: Call, layout: str
) -> None:
    for values in ((math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf)):
        x = random_tensor((3, 4, 5, 6), dtype, layout)
        for i, value in enumerate(values):
            x[1, 2, 3, i] = value
        check_function(norm, x, label=str(values))


@pytest.mark.cpu_only("sums that overflow are repeated in double")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@both
@layouts
def test_squares_beyond_the_range_of_float(dtype: torch.dtype, norm: Call, layout: str) -> None:
    # torch's variance is infinite and its output 0 there.
    for value in (1e20, -3e38):
        x = random_tensor((3, 4, 5, 6), dtype, layout)
        x[1, 2, 3, 4] = value
        fast, exact = norm(fastdl.functional, x), norm(reference, x)
        torch.testing.assert_close(fast.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.every_isa
@all_dtypes
@both
@layouts
def test_values_that_are_all_equal_give_the_bias(
    dtype: torch.dtype, norm: Call, layout: str
) -> None:
    for value in (-7.25, 0.0, 1000.0, 2.0**100):  # the last one's square is beyond float32
        if value > torch.finfo(dtype).max:
            continue
        x = LAYOUTS[layout](torch.full((3, 4, 9, 11), value, dtype=dtype))
        bias = random_tensor((4,), dtype)
        output = norm(fastdl.functional, x, torch.ones_like(bias), bias)
        assert_same_bits(output, bias.reshape(4, 1, 1).expand(x.shape), str(value))


@pytest.mark.parametrize("op", ["batch_norm", "group_norm"])
@layouts
def test_a_mean_far_from_zero_costs_the_variance_no_digits(op: str, layout: str) -> None:
    x = torch.randn(8, 4, 50, 50, dtype=torch.float64).mul(0.01).add(1000).float()
    x = LAYOUTS[layout](x)
    if op == "batch_norm":
        arguments = (x, None, None, None, None, None, True, 0.1, 0.0, False)
        values = x.double().transpose(0, 1).reshape(4, -1)
    else:
        arguments = (x, GROUPS, None, None, 0.0)
        values = x.double().reshape(8, GROUPS, -1)
    _, statistics = getattr(torch.ops.fastdl, op + "_forward")(*arguments)
    exact = values.var(-1, correction=0).rsqrt()
    torch.testing.assert_close(statistics[1].double(), exact, rtol=1e-5, atol=0)


@layouts
@both
def test_a_mean_far_from_zero_is_as_accurate_as_with_torch(norm: Call, layout: str) -> None:
    for mean, dtype in itertools.product((1000.0, -3e4), (torch.float32, torch.float64)):
        x = random_tensor((8, 4, 50, 50), dtype, layout) + mean
        fast, native, exact = norm(fastdl.functional, x), norm(F, x), norm(reference, x.double())
        assert_as_accurate_as_torch(fast, native, exact, label=f"{mean} {dtype}")


# ---- more than 2^31 elements: outputs and gradients of a few of the channels or samples


def check_some(norm: Call, x: Tensor, dim: int) -> None:
    """Those that are first, somewhere and last along `dim`, whose others do not touch them."""
    weight = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)
    output = norm(fastdl.functional, x.requires_grad_(), weight)
    (dx,) = torch.autograd.grad(output, x, x.detach())
    size = x.shape[dim]
    for begin in (0, 2 * size // 3, size - 2):
        some = x.detach().narrow(dim, begin, 2)
        part = weight.narrow(0, begin, 2) if dim == 1 else weight
        results = []
        for module, dtype in ((F, x.dtype), (reference, torch.float64)):
            leaf = some.to(dtype, copy=True).requires_grad_()
            y = norm(module, leaf, part.to(dtype))
            results.append((y, *torch.autograd.grad(y, leaf, leaf.detach())))
        fast = (output.detach().narrow(dim, begin, 2), dx.narrow(dim, begin, 2))
        for i, triple in enumerate(zip(fast, *results, strict=True)):
            assert_as_accurate_as_torch(*triple, gradient=i == 1, label=f"{begin} {i}")


def more_than_2_to_the_31_elements(layout: str) -> Tensor:
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(1025, 2050, 32, 32, dtype=torch.bfloat16, memory_format=format).normal_()
    assert x.numel() > 2**31
    return x


@pytest.mark.slow
@layouts
def test_more_than_2_to_the_31_elements_of_batch_norm(layout: str) -> None:
    # With the ReLU: without, the gradient in the direction of x itself is 0.
    check_some(batch_norm_relu, more_than_2_to_the_31_elements(layout), 1)


@pytest.mark.slow
@layouts
def test_more_than_2_to_the_31_elements_of_group_norm(layout: str) -> None:
    check_some(group_norm, more_than_2_to_the_31_elements(layout), 0)
