"""rms_norm: values and gradients next to torch's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests import reference
from tests.compare import Call, assert_as_accurate_as_torch, assert_same_bits, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import (
    DTYPES,
    LAYOUTS,
    REDUCED_DTYPES,
    SIZES,
    dtype_name,
    random_tensor,
    special_rows,
    spread_rows,
)

OVERFLOWING_ROWS = ("largest", "lowest", "largest and lowest")

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def over(normalized_shape: Sequence[int], eps: float = 1e-6) -> Call:
    """rms_norm over the last dimensions, of these sizes."""

    def call(module: ModuleType, input: Tensor, weight: Tensor | None) -> Tensor:
        return module.rms_norm(input, normalized_shape, weight, eps)

    return call


@pytest.mark.every_isa
@all_dtypes
def test_rows_of_every_size(dtype: torch.dtype) -> None:
    for size in SIZES:
        x, weight = spread_rows(size, dtype), random_tensor((size,), dtype)
        check_function(over((size,)), x, weight, label=str(size))
        check_function(over((size,)), x, None, label=f"{size}, no weight")


@all_dtypes
def test_one_row(dtype: torch.dtype) -> None:
    for size in (67, 128, 1009):
        x, weight = random_tensor((size,), dtype), random_tensor((size,), dtype)
        check_function(over((size,)), x, weight, label=str(size))


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_input(dtype: torch.dtype, layout: str) -> None:
    for shape in ((7, 33), (3, 5, 17), (2, 3, 5, 9)):
        for dims in range(1, len(shape) + 1):
            x, weight = random_tensor(shape, dtype, layout), random_tensor(shape[-dims:], dtype)
            check_function(over(shape[-dims:]), x, weight, label=f"{shape} last {dims}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_weight_and_grad_output(dtype: torch.dtype, layout: str) -> None:
    for dims in (1, 2, 3):
        shape = (3, 4, 5, 9)
        x, grad = random_tensor(shape, dtype), random_tensor(shape, dtype, layout)
        weight = random_tensor(shape[-dims:], dtype, layout)
        check_function(over(shape[-dims:]), x, weight, grad_output=grad, label=f"last {dims}")


@all_dtypes
@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)], ids=str)
def test_each_choice_of_wanted_gradients(dtype: torch.dtype, which: tuple[bool, ...]) -> None:
    values = [random_tensor((5, 33), dtype), random_tensor((33,), dtype)]
    grad_output = random_tensor((5, 33), dtype)
    results = []
    for module in (fastdl.functional, torch.nn.functional, reference):
        leaves = [value.clone() for value in values]
        if module is reference:
            leaves = [leaf.double() for leaf in leaves]
        for leaf, want in zip(leaves, which, strict=True):
            leaf.requires_grad_(want)
        output = over((33,))(module, *leaves)
        output.backward(grad_output.to(output.dtype))
        results.append([leaf.grad for leaf in leaves])
    for fast, native, exact, want in zip(*results, which, strict=True):
        assert (fast is not None) == (native is not None) == want
        if want:
            assert_as_accurate_as_torch(fast, native, exact, gradient=True)


@pytest.mark.parametrize(("input_dtype", "weight_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_mixed_dtypes_give_the_dtype_and_warning_of_torch(
    input_dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    x, weight = random_tensor((5, 33), input_dtype), random_tensor((33,), weight_dtype)
    # torch gives this warning once per process, to whoever comes first.
    assert_same_outcome(
        lambda: fastdl.functional.rms_norm(x, (33,), weight),
        lambda: torch.nn.functional.rms_norm(x, (33,), weight),
        warnings=False,
    )


@all_dtypes
def test_without_eps_that_of_the_computing_type_is_taken(dtype: torch.dtype) -> None:
    x = (1e-4 if dtype != torch.float64 else 1e-8) * spread_rows(33, torch.float64)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    y = fastdl.functional.rms_norm(x.to(dtype), (33,))
    assert_same_bits(y, fastdl.functional.rms_norm(x.to(dtype), (33,), eps=eps))
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x.to(dtype), (33,)))
    assert not torch.allclose(y, fastdl.functional.rms_norm(x.to(dtype), (33,), eps=0.0))


@all_dtypes
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4), (0, 3, 4), (1,), (1, 1)], ids=str)
def test_empty_and_single_element_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for dims in range(1, len(shape) + 1):
        x, weight = random_tensor(shape, dtype), random_tensor(shape[-dims:], dtype)
        # A large eps, because x / sqrt(x^2 + eps) of a single x hardly depends on x otherwise.
        check_function(over(shape[-dims:], 0.5), x, weight, label=f"last {dims}")
        check_function(over(shape[-dims:], 0.5), x, None, label=f"last {dims}, no weight")


@pytest.mark.every_isa
@all_dtypes
def test_special_values_are_treated_like_torch(dtype: torch.dtype) -> None:
    for size in (4, 5, 16, 37, 131):
        for name, x in special_rows(size, dtype).items():
            if name not in OVERFLOWING_ROWS:
                x = torch.cat([x, spread_rows(size, dtype)])
                check_function(over((size,)), x, None, label=f"{name}, {size}")


@all_dtypes
def test_rows_whose_squares_overflow_are_treated_like_torch(dtype: torch.dtype) -> None:
    for size in (4, 5, 16, 37, 131):
        for name in OVERFLOWING_ROWS:
            x = special_rows(size, dtype)[name]
            fast = fastdl.functional.rms_norm(x, (size,))
            native = torch.nn.functional.rms_norm(x, (size,))
            torch.testing.assert_close(fast, native, equal_nan=True, msg=f"{name}: {fast}")


@all_dtypes
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e15])
def test_large_and_small_magnitudes(dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale = {1e-20: 1e-7, 1e15: 1e4, 1e6: 1e3}.get(scale, scale)
    for size in (5, 64, 131):
        x = (scale * spread_rows(size, torch.float64)).to(dtype)
        check_function(over((size,)), x, random_tensor((size,), dtype), label=f"{scale}, {size}")


@all_dtypes
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(5, 8191), (5, 8193), (3, 100_003), (40_001, 8), (30_011, 37)])
def test_long_rows_and_many_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check_function(over(shape[1:]), random_tensor(shape, dtype), random_tensor(shape[1:], dtype))


@given(data=st.data())
def test_any_shape_dtype_and_layout(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4), "shape")
    dims = data.draw(st.integers(1, len(shape)), "dims")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    weight = None
    if data.draw(st.booleans(), "weight"):
        weight = random_tensor(shape[-dims:], dtype)
    check_function(over(shape[-dims:], 0.5), random_tensor(shape, dtype, layout), weight)


@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_16_bit_input_is_rounded_once(dtype: torch.dtype) -> None:
    # Within half a unit in the last place of the exact value: nothing is rounded before.
    x, weight = random_tensor((64, 257), dtype), random_tensor((257,), dtype)
    y = fastdl.functional.rms_norm(x, (257,), weight, 1e-6).double()
    exact = reference.rms_norm(x, (257,), weight, 1e-6)
    assert ((y - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all()
