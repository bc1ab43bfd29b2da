"""layer_norm where values are special: infinities, NaN, a large mean, extreme magnitudes."""

from __future__ import annotations

import pytest
import torch

import fastdl
from tests import reference
from tests.compare import check_function
from tests.tensors import DTYPES, SIZES, dtype_name, random_tensor, special_rows, spread_rows
from tests.test_layer_norm import check, over

OVERFLOWING_ROWS = ("largest", "lowest", "largest and lowest")

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.mark.every_isa
@all_dtypes
def test_special_values_are_treated_like_torch(dtype: torch.dtype) -> None:
    for size in (4, 5, 16, 37, 131):
        for name, x in special_rows(size, dtype).items():
            if name not in OVERFLOWING_ROWS:
                x = torch.cat([x, spread_rows(size, dtype)])
                check(x, (size,), dtype, f"{name}, {size}")


@all_dtypes
def test_rows_whose_squares_overflow_give_nan_or_the_right_value(dtype: torch.dtype) -> None:
    # torch gives NaN or, depending on the length, a wrong 0. Never a wrong number here.
    for size in (4, 5, 16, 37, 131):
        for name in OVERFLOWING_ROWS:
            x = special_rows(size, dtype)[name]
            fast = fastdl.functional.layer_norm(x, (size,))
            exact = reference.layer_norm(x.double() / torch.finfo(dtype).max, (size,), eps=0.0)
            given = ~fast.isnan()
            torch.testing.assert_close(fast[given], exact[given].to(dtype), msg=f"{name}, {size}")


@all_dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_special_value_in_a_parameter_stays_in_its_column(
    dtype: torch.dtype, value: float
) -> None:
    x, weight, bias = (random_tensor(shape, dtype) for shape in ((3, 37), (37,), (37,)))
    weight[7] = value
    bias[9] = value
    check_function(over((37,)), x, weight, bias, gradients=False)
    leaves = [[t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2)]
    for module, tensors in zip((fastdl.functional, torch.nn.functional), leaves, strict=True):
        over((37,))(module, *tensors).sum().backward()
    for fast, native in zip(*leaves, strict=True):
        # The order of operations decides between infinity and NaN.
        assert torch.equal(fast.grad.isfinite(), native.grad.isfinite())


@pytest.mark.every_isa
@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
@all_dtypes
def test_saved_statistics_are_exact_to_float32_for_every_tail(
    dtype: torch.dtype, offset: float
) -> None:
    for size in SIZES:
        x = (spread_rows(size, torch.float64) + offset).to(dtype)
        _, statistics = torch.ops.fastdl.layer_norm_forward(x, [size], None, None, 1e-5, 0)
        variance, mean = torch.var_mean(x.double(), -1, correction=0)
        expected = torch.stack([mean, (variance + 1e-5).rsqrt()])
        tolerance = 1e-12 if dtype == torch.float64 else 4e-6
        torch.testing.assert_close(statistics.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("offset", [0.0, 30.0, 200.0, 1000.0])
@all_dtypes
def test_variance_far_from_zero_mean(dtype: torch.dtype, offset: float) -> None:
    # A one-pass variance would cancel here.
    for size in (3, 16, 67, 1009):
        x = (spread_rows(size, torch.float64) + offset).to(dtype)
        check(x, (size,), dtype, f"{offset}, {size}")


@all_dtypes
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e15])
def test_large_and_small_magnitudes(dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale = {1e-20: 1e-7, 1e15: 1e4, 1e6: 1e3}.get(scale, scale)
    for size in (5, 64, 131):
        x = (scale * spread_rows(size, torch.float64)).to(dtype)
        check(x, (size,), dtype, f"{scale}, {size}")


@all_dtypes
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.1, 1.0])
def test_every_eps(dtype: torch.dtype, eps: float) -> None:
    weight, bias = random_tensor((33,), dtype), random_tensor((33,), dtype)
    check_function(over((33,), eps), random_tensor((3, 33), dtype), weight, bias)
