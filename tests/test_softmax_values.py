"""The softmax family where values are special: infinities, NaN, masked rows, large magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastdl.functional as fast
from tests.compare import assert_same_bits, check_function
from tests.tensors import DTYPES, REDUCED_DTYPES, dtype_name, special_rows, zero_sum
from tests.test_softmax import FUNCTIONS, along

all_functions = pytest.mark.parametrize("function", FUNCTIONS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.mark.every_isa
@all_functions
@all_dtypes
def test_special_values_in_rows_are_treated_like_torch(function: str, dtype: torch.dtype) -> None:
    for size in (4, 5, 8, 15, 16, 17, 33, 64, 131, 1003):
        for name, x in special_rows(size, dtype).items():
            grad = zero_sum(x)
            check_function(along(function, -1), x, grad_output=grad, label=f"{name}, {size}")


@pytest.mark.every_isa
@all_functions
@all_dtypes
def test_special_values_in_columns_are_treated_like_torch(
    function: str, dtype: torch.dtype
) -> None:
    # Side by side, in every position of a block of vectors: a column must not see its neighbours.
    for size in (4, 7, 64):
        x = torch.cat(list(special_rows(size, dtype).values()))
        grad = zero_sum(x).t().contiguous()
        label = f"{size} x {len(x)} columns"
        check_function(along(function, 0), x.t().contiguous(), grad_output=grad, label=label)


@all_functions
@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_special_values_with_float32_output(function: str, dtype: torch.dtype) -> None:
    for size in (5, 33):
        for name, x in special_rows(size, dtype).items():
            grad = zero_sum(x).float()
            label = f"{name}, {size}"
            check_function(along(function, -1, torch.float32), x, grad_output=grad, label=label)
            call = along(function, 0, torch.float32)
            check_function(call, x.t(), grad_output=grad.t(), label=f"{label}, columns")


@pytest.mark.every_isa
@all_functions
@all_dtypes
@pytest.mark.parametrize("dim", [0, 1])
def test_special_values_in_a_later_chunk_of_a_long_row(
    function: str, dtype: torch.dtype, dim: int
) -> None:
    size = 270_001 if dim == 1 else 20_001  # at least three chunks of scratch memory
    third = size // 3
    base = torch.linspace(-2, 2, size, dtype=torch.float64)
    rows = {
        "first third -inf": base.clone().index_fill_(0, torch.arange(third), -math.inf),
        "last third -inf": base.clone().index_fill_(0, torch.arange(2 * third, size), -math.inf),
        "all but the last -inf": torch.full_like(base, -math.inf).index_fill_(
            0, torch.tensor([size - 1]), 0.5
        ),
        "all but the first -inf": torch.full_like(base, -math.inf).index_fill_(
            0, torch.tensor([0]), 0.5
        ),
        "all -inf": torch.full_like(base, -math.inf),
        "all +inf": torch.full_like(base, math.inf),
        "+inf early": base.clone().index_fill_(0, torch.tensor([3]), math.inf),
        "+inf late": base.clone().index_fill_(0, torch.tensor([size - 3]), math.inf),
        "NaN early": base.clone().index_fill_(0, torch.tensor([3]), math.nan),
        "NaN in the middle": base.clone().index_fill_(0, torch.tensor([size // 2]), math.nan),
        "NaN late": base.clone().index_fill_(0, torch.tensor([size - 3]), math.nan),
        "rising": base * 40,
        "falling": base * -40,
    }
    x = torch.stack(list(rows.values()), dim=1 - dim).to(dtype)
    check_function(along(function, dim), x, label=f"{list(rows)}")


@all_functions
@all_dtypes
def test_large_magnitudes(function: str, dtype: torch.dtype) -> None:
    for scale in (30.0, 300.0, 3e4):
        for shape, dim in (((5, 131), 1), ((67, 37), 0)):
            x = (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)
            check_function(along(function, dim), x, label=f"scale {scale}, dim {dim}")


@all_dtypes
@pytest.mark.parametrize("function", ["softmax", "softmin"])
def test_fully_masked_row_gives_nan_and_leaves_its_neighbours(
    function: str, dtype: torch.dtype
) -> None:
    masked = math.inf if function == "softmin" else -math.inf
    x = torch.zeros(3, 8, dtype=dtype)
    x[1] = masked
    y = getattr(fast, function)(x, dim=1)
    assert y[1].isnan().all()
    assert_same_bits(y[[0, 2]], torch.full((2, 8), 0.125, dtype=dtype))


@all_dtypes
def test_masked_elements_get_exactly_zero_and_the_others_sum_to_one(dtype: torch.dtype) -> None:
    x = torch.randn(16, 33, dtype=torch.float64).to(dtype)
    mask = torch.rand(16, 33) < 0.4
    mask[:, 7] = False
    y = fast.softmax(x.masked_fill(mask, -math.inf), dim=-1)
    assert (y[mask] == 0).all() and (y[~mask] > 0).all()
    torch.testing.assert_close(
        y.sum(-1, dtype=torch.float64),
        torch.ones(16).double(),
        atol=2e-2 if dtype in REDUCED_DTYPES else 1e-6,
        rtol=0,
    )


@all_functions
@all_dtypes
def test_special_values_in_grad_output_are_treated_like_torch(
    function: str, dtype: torch.dtype
) -> None:
    for size in (5, 16, 37):
        grad = torch.cat(list(special_rows(size, dtype).values()))
        x = torch.randn(grad.shape, dtype=torch.float64).to(dtype)
        finite: Tensor = grad.isfinite().all(1) & (grad.abs() < 1e4).all(1)
        for rows, kind in ((finite, "finite"), (~finite, "not finite")):
            for dim, swap in ((1, False), (0, True)):
                inputs = [t[rows].t().contiguous() if swap else t[rows] for t in (x, grad)]
                check_function(
                    along(function, dim), inputs[0], grad_output=inputs[1], label=f"{kind} {dim}"
                )
