"""layer_norm: values and gradients next to torch's."""

from __future__ import annotations

import itertools
import math
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
from tests.outcome import check_where_torch_can
from tests.tensors import (
    DTYPES,
    LAYOUTS,
    REDUCED_DTYPES,
    SIZES,
    dtype_name,
    random_tensor,
    spread_rows,
)

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
reduced_dtypes = pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)


def over(normalized_shape: Sequence[int], eps: float = 1e-5) -> Call:
    """layer_norm over the last dimensions, of these sizes."""

    def call(
        module: ModuleType, input: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return module.layer_norm(input, normalized_shape, weight, bias, eps)

    return call


def check(
    x: Tensor,
    normalized_shape: Sequence[int],
    parameters: torch.dtype | None,
    label: str = "",
    **options: bool | Tensor,
) -> None:
    """One case, with weight and bias of dtype `parameters` or with neither."""
    weight = bias = None
    if parameters is not None:
        weight = random_tensor(normalized_shape, parameters)
        bias = random_tensor(normalized_shape, parameters)
    # On a GPU torch has no parameters of another dtype than the input's.
    check_where_torch_can(over(normalized_shape), x, weight, bias, label=label, **options)


@pytest.mark.every_isa
@all_dtypes
@pytest.mark.parametrize("affine", [True, False])
def test_rows_of_every_size(dtype: torch.dtype, affine: bool) -> None:
    for size in SIZES:
        check(spread_rows(size, dtype), (size,), dtype if affine else None, str(size))


@all_dtypes
def test_one_row(dtype: torch.dtype) -> None:
    for size in (67, 128, 1009):
        check(random_tensor((size,), dtype), (size,), dtype, str(size))


@pytest.mark.every_isa
@reduced_dtypes
def test_16_bit_input_with_float32_parameters(dtype: torch.dtype) -> None:
    for size in SIZES:
        check(spread_rows(size, dtype), (size,), torch.float32, str(size))


@reduced_dtypes
def test_16_bit_input_with_one_float32_parameter(dtype: torch.dtype) -> None:
    x, parameter = random_tensor((5, 33), dtype), random_tensor((33,))
    check_where_torch_can(over((33,)), x, parameter, None)
    # torch itself has no backward for this one.
    check_where_torch_can(over((33,)), x, None, parameter, gradients=False)


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_input(dtype: torch.dtype, layout: str) -> None:
    for shape in ((7, 33), (3, 5, 17), (2, 3, 5, 9)):
        for dims in range(1, len(shape) + 1):
            check(random_tensor(shape, dtype, layout), shape[-dims:], dtype, f"{shape} last {dims}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_grad_output(dtype: torch.dtype, layout: str) -> None:
    for dims in (1, 2, 3):
        shape = (3, 4, 5, 9)
        grad = random_tensor(shape, dtype, layout)
        check(random_tensor(shape, dtype), shape[-dims:], dtype, f"last {dims}", grad_output=grad)


@all_dtypes
@pytest.mark.parametrize("layout", ["unaligned", "sliced", "stepped", "transposed", "expanded"])
def test_every_layout_of_the_parameters(dtype: torch.dtype, layout: str) -> None:
    shape = (4, 33)
    weight, bias = random_tensor(shape, dtype, layout), random_tensor(shape, dtype, layout)
    check_function(over(shape), random_tensor((6, *shape), dtype), weight, bias)


@all_dtypes
@pytest.mark.parametrize("which", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("present", ["both", "weight", "bias", "none"])
def test_each_choice_of_wanted_gradients(
    dtype: torch.dtype, which: tuple[bool, ...], present: str
) -> None:
    has = (True, present in ("both", "weight"), present in ("both", "bias"))
    wanted = [want and have for want, have in zip(which, has, strict=True)]
    values = [random_tensor(shape, dtype) for shape in ((5, 33), (33,), (33,))]
    grad_output = random_tensor((5, 33), dtype)
    results = []
    for module in (fastdl.functional, torch.nn.functional, reference):
        leaves = [value.clone() for value in values]
        if module is reference:
            leaves = [leaf.double() for leaf in leaves]
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(want)
        arguments = [leaf if have else None for leaf, have in zip(leaves, has, strict=True)]
        output = over((33,))(module, *arguments)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.backward(grad_output.to(output.dtype))
        results.append([leaf.grad for leaf in leaves])
    for fast, native, exact, want in zip(*results, wanted, strict=True):
        assert (fast is not None) == (native is not None) == want
        if want:
            assert_as_accurate_as_torch(fast, native, exact, gradient=True)


@all_dtypes
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4), (0, 3, 4)], ids=str)
def test_empty_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for dims in range(1, len(shape) + 1):
        check(random_tensor(shape, dtype), shape[-dims:], dtype, f"last {dims}")
        check(random_tensor(shape, dtype), shape[-dims:], None, f"last {dims}, no parameters")


@all_dtypes
@pytest.mark.parametrize("shape", [(1,), (1, 1), (5, 1)], ids=str)
def test_one_element_gives_the_bias_and_no_gradient(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    leaves = [random_tensor(s, dtype).requires_grad_() for s in (shape, (1,), (1,))]
    x, weight, bias = leaves
    output = fastdl.functional.layer_norm(x, (1,), weight, bias)
    assert_same_bits(output.detach(), bias.detach().expand(shape))
    output.backward(random_tensor(shape, dtype))
    # The gradient is exactly 0; what rounding leaves of it is scaled by 1 / sqrt(eps).
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert x.grad.abs().max() <= 4 * unit * 1e-5**-0.5 * max(1.0, weight.abs().item())
    assert weight.grad.item() == 0


@all_dtypes
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(5, 8191), (5, 8193), (3, 100_003), (40_001, 8), (30_011, 37)])
def test_long_rows_and_many_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check(random_tensor(shape, dtype), shape[1:], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.usefixtures("threads")
def test_outputs_larger_than_the_cache(dtype: torch.dtype) -> None:
    for shape in ((2051, 1031), (4099, 1024)):
        check(random_tensor(shape, dtype), shape[1:], dtype, str(shape))


@given(data=st.data())
def test_any_shape_dtype_and_layout(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4), "shape")
    dims = data.draw(st.integers(1, len(shape)), "dims")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    parameters = data.draw(st.sampled_from([None, dtype, torch.float32]), "parameters")
    mixes = dtype in REDUCED_DTYPES and torch.get_default_device().type == "cpu"
    if parameters is not None and not mixes:
        parameters = dtype
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    weight = bias = None
    if parameters is not None:
        weight, bias = (random_tensor(shape[-dims:], parameters) for _ in range(2))
    x = random_tensor(shape, dtype, layout)
    # Normalising one element leaves nothing but rounding to differentiate.
    gradients = math.prod(shape[-dims:]) != 1
    check_function(over(shape[-dims:], 0.5), x, weight, bias, gradients=gradients)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    x = torch.empty(65537, 32800, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    y = fastdl.functional.layer_norm(x, (32800,))
    for rows in (slice(0, 7), slice(40000, 40007), slice(-7, None)):
        native = torch.nn.functional.layer_norm(x[rows], (32800,))
        exact = torch.nn.functional.layer_norm(x[rows].double(), (32800,))
        assert_as_accurate_as_torch(y[rows], native, exact)
