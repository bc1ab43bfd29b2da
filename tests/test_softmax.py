"""softmax, log_softmax and softmin: values and gradients next to torch's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests.compare import Call, check_function
from tests.tensors import DTYPES, LAYOUTS, REDUCED_DTYPES, SIZES, dtype_name, random_tensor

FUNCTIONS = ("softmax", "log_softmax", "softmin")

pytestmark = pytest.mark.parametrize("function", FUNCTIONS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def along(function: str, dim: int, dtype: torch.dtype | None = None) -> Call:
    """The call of one function of the family along `dim`."""

    def call(module: ModuleType, input: Tensor) -> Tensor:
        return getattr(module, function)(input, dim=dim, dtype=dtype)

    return call


@pytest.mark.every_isa
@all_dtypes
def test_rows_of_every_size(function: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        x = 3 * random_tensor((3, size), dtype)
        check_function(along(function, -1), x, label=f"(3, {size})")


@pytest.mark.every_isa
@all_dtypes
def test_columns_of_every_count(function: str, dtype: torch.dtype) -> None:
    for inner in SIZES:
        x = 3 * random_tensor((2, 5, inner), dtype)
        check_function(along(function, 1), x, label=f"(2, 5, {inner}) dim 1")


@pytest.mark.every_isa
@all_dtypes
def test_columns_of_every_length(function: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        x = 3 * random_tensor((size, 19), dtype)
        check_function(along(function, 0), x, label=f"({size}, 19) dim 0")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dim(function: str, dtype: torch.dtype, layout: str) -> None:
    for shape in ((7, 33), (3, 5, 17), (2, 3, 5, 9), (2, 3, 4, 2, 5)):
        for dim in range(-len(shape), len(shape)):
            x = random_tensor(shape, dtype, layout)
            check_function(along(function, dim), x, label=f"{shape} dim {dim}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_grad_output(function: str, dtype: torch.dtype, layout: str) -> None:
    for dim in range(4):
        x, grad = random_tensor((3, 4, 5, 17), dtype), random_tensor((3, 4, 5, 17), dtype, layout)
        check_function(along(function, dim), x, grad_output=grad, label=f"dim {dim}")


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_16_bit_input_with_float32_output(function: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        rows, columns = random_tensor((3, size), dtype), random_tensor((2, 5, size), dtype)
        check_function(along(function, -1, torch.float32), rows, label=f"(3, {size})")
        check_function(along(function, 1, torch.float32), columns, label=f"(2, 5, {size}) dim 1")


@all_dtypes
@pytest.mark.parametrize(
    "shape", [(0,), (0, 5), (5, 0), (3, 0, 4), (0, 0), (1,), (1, 1, 1)], ids=str
)
def test_empty_and_single_element_tensors(
    function: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    for dim in range(-len(shape), len(shape)):
        check_function(along(function, dim), random_tensor(shape, dtype), label=f"dim {dim}")


@all_dtypes
@pytest.mark.parametrize("dim", [0, -1])
def test_tensor_without_dimensions(function: str, dtype: torch.dtype, dim: int) -> None:
    check_function(along(function, dim), torch.tensor(2.5, dtype=dtype))


@all_dtypes
@pytest.mark.usefixtures("threads")
def test_rows_longer_than_the_scratch_memory(function: str, dtype: torch.dtype) -> None:
    # The kernel takes a row in chunks of 2^17 elements (float64: 2^16). Several rows, because the
    # error of a row's sum is one random number, and of a single one no comparison can be made.
    chunk = 65536 if dtype == torch.float64 else 131072
    for size in (chunk - 1, chunk + 1, 2 * chunk + 37):
        x = 4 * random_tensor((5, size), dtype)
        x[:, -3] = 9  # for most rows the maximum comes in the last chunk
        check_function(along(function, -1), x, label=f"(5, {size})")


@all_dtypes
@pytest.mark.usefixtures("threads")
def test_columns_longer_than_the_scratch_memory(function: str, dtype: torch.dtype) -> None:
    # A block of 4 vectors of columns is taken 2048 at a time, one of 1 vector 8192 at a time; the
    # backward packs half as many.
    for size in (1023, 1024, 1025, 2047, 2048, 2049, 4097, 8193, 16385):
        inner = 83 if size < 5000 else 19
        x = 4 * random_tensor((size, inner), dtype)
        x[-1, ::2] = 9
        check_function(along(function, 0), x, label=f"({size}, {inner}) dim 0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((701, 3001), 1), ((3, 700, 1024), 1), ((3, 701, 1001), 1), ((2, 1050629), 1)],
)
@pytest.mark.usefixtures("threads")
def test_outputs_larger_than_the_cache(
    function: str, dtype: torch.dtype, shape: tuple[int, ...], dim: int
) -> None:
    # From 8 MiB on results are written past the cache, in vectors that must be aligned.
    check_function(along(function, dim), random_tensor(shape, dtype), label=str(shape))


@given(data=st.data())
def test_any_shape_dim_dtype_and_layout(function: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=5), "shape")
    dim = data.draw(st.integers(-len(shape), len(shape) - 1), "dim")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    check_function(along(function, dim), 4 * random_tensor(shape, dtype, layout))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements(function: str) -> None:
    x = torch.empty(65537, 32800, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    for dim in (0, 1):
        torch.manual_seed(dim)
        got = along(function, dim)(fastdl.functional, x)
        for rows in (slice(0, 7), slice(40000, 40007), slice(-7, None)):
            part = x[rows] if dim == 1 else x[:, rows]
            fast = got[rows] if dim == 1 else got[:, rows]
            native = along(function, dim)(torch.nn.functional, part)
            torch.testing.assert_close(fast, native)
