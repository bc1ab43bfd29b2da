"""The activation functions: values and gradients next to torch's, in place and out of place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastdl
from tests.compare import (
    Call,
    assert_as_accurate_as_torch,
    assert_same_bits,
    assert_same_metadata,
    check_function,
)
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, SIZES, dtype_name, random_tensor

FUNCTIONS: dict[str, Call] = {
    "relu": lambda m, x: m.relu(x),
    "sigmoid": lambda m, x: m.sigmoid(x),
    "tanh": lambda m, x: m.tanh(x),
    "gelu": lambda m, x: m.gelu(x),
    "gelu_tanh": lambda m, x: m.gelu(x, approximate="tanh"),
    "silu": lambda m, x: m.silu(x),
    "leaky_relu": lambda m, x: m.leaky_relu(x, 0.2),
    "elu": lambda m, x: m.elu(x, 0.7),
}
IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "relu": lambda m, x, inplace: m.relu(x, inplace),
    "silu": lambda m, x, inplace: m.silu(x, inplace),
    "leaky_relu": lambda m, x, inplace: m.leaky_relu(x, 0.2, inplace),
    "elu": lambda m, x, inplace: m.elu(x, 0.7, inplace),
}

all_functions = pytest.mark.parametrize("name", FUNCTIONS)
all_in_place = pytest.mark.parametrize("name", IN_PLACE)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.mark.every_isa
@all_functions
@all_dtypes
def test_every_size(name: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        check_function(FUNCTIONS[name], 3 * random_tensor((size,), dtype), label=f"({size},)")


@pytest.mark.every_isa
@all_functions
@all_dtypes
def test_values_over_the_whole_range_of_the_function(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64).to(dtype)
    check_function(FUNCTIONS[name], x)
    near_zero = torch.logspace(-37, 0, 2001, dtype=torch.float64).to(dtype)
    for half in (near_zero, -near_zero):
        for part in half.split(200):  # relative to the numbers around, not to the largest of all
            check_function(FUNCTIONS[name], part)


@pytest.mark.every_isa
@all_functions
@all_dtypes
def test_infinities_nan_and_extreme_numbers_give_what_torch_gives(
    name: str, dtype: torch.dtype
) -> None:
    info = torch.finfo(dtype)
    numbers = [0.0, info.smallest_normal, info.smallest_normal / 4, 1, 30, 88.2, 89, 200, 709, 746]
    numbers += [2.0**15, info.max / 2, info.max, math.inf]
    x = torch.tensor([*numbers, *(-n for n in numbers), math.nan], dtype=torch.float64).to(dtype)
    check_function(FUNCTIONS[name], x, gradients=False)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [FUNCTIONS[name](m, leaf) for m, leaf in zip(
        (fastdl.functional, torch.nn.functional), leaves, strict=True
    )]  # fmt: skip
    grads = [torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in zip(outputs, leaves, strict=True)]
    if name == "elu":  # of NaN torch's is 1 at the end of a tensor; the next test has it
        grads = [grad[:-1] for grad in grads]
    assert_as_accurate_as_torch(*grads, grads[1].double(), gradient=True)
    if name in ("relu", "leaky_relu"):
        assert_same_bits(outputs[0].detach(), outputs[1].detach())
        assert_same_bits(*grads)
    if name in ("sigmoid", "tanh", "silu", "elu"):
        numbers = outputs[1].isfinite()  # the sign of a NaN is nobody's choice
        assert torch.equal(outputs[0].signbit()[numbers], outputs[1].signbit()[numbers])


@pytest.mark.every_isa
@all_dtypes
def test_gradient_of_elu_at_nan_is_nan_as_in_torchs_whole_vectors(dtype: torch.dtype) -> None:
    for size in SIZES:
        fast, native = (torch.full((size,), math.nan, dtype=dtype).requires_grad_() for _ in "ab")
        with fastdl.strict():
            (grad,) = torch.autograd.grad(FUNCTIONS["elu"](fastdl.functional, fast).sum(), fast)
        assert grad.isnan().all()
        output = FUNCTIONS["elu"](torch.nn.functional, native)
        (grad,) = torch.autograd.grad(output.sum(), native)
        vectors = size // 32 * 32  # 1 behind them
        assert grad[:vectors].isnan().all()


@all_functions
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(name: str, layout: str) -> None:
    for shape in ((7, 33), (2, 3, 5, 9), (2, 3, 4, 2, 5)):
        check_function(FUNCTIONS[name], random_tensor(shape, layout=layout), label=f"{shape}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_grad_output(layout: str) -> None:
    shape = (2, 3, 5, 9)
    for own in ("contiguous", "channels_last", "transposed", "sliced"):
        x, grad = random_tensor(shape, layout=own), random_tensor(shape, layout=layout)
        for name in ("relu", "silu"):  # one that needs its output, one its input
            check_function(FUNCTIONS[name], x, grad_output=grad, label=own)


@all_functions
def test_empty_and_zero_dimensional_tensors(name: str) -> None:
    for shape in ((), (0,), (0, 5), (3, 0, 4), (1, 1)):
        check_function(FUNCTIONS[name], random_tensor(shape), label=f"{shape}")


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.usefixtures("threads")
def test_tensors_larger_than_the_cache(name: str, dtype: torch.dtype) -> None:
    # Results are written past the cache, in vectors that must be aligned.
    size = (8 << 20) // (2 * dtype.itemsize)
    check_function(FUNCTIONS[name], random_tensor((size + 1001,), dtype)[1:])


@given(data=st.data())
def test_any_shape_dtype_and_layout(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(FUNCTIONS)), "function")
    shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=5), "shape")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    check_function(FUNCTIONS[name], 4 * random_tensor(shape, dtype, layout))


@all_functions
def test_first_and_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    leaf = random_tensor((3, 7), torch.float64).requires_grad_()
    assert gradcheck(lambda x: FUNCTIONS[name](fastdl.functional, x), [leaf], fast_mode=True)
    assert gradgradcheck(lambda x: FUNCTIONS[name](fastdl.functional, x), [leaf], fast_mode=True)


@all_in_place
@all_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "unaligned", "transposed", "channels_last"])
def test_in_place_gives_the_same_values_in_the_same_tensor(
    name: str, dtype: torch.dtype, layout: str
) -> None:
    x = random_tensor((2, 5, 7, 33), dtype, layout)
    expected, version = IN_PLACE[name](fastdl.functional, x, False), x._version
    with fastdl.strict():
        assert IN_PLACE[name](fastdl.functional, x, True) is x
    assert_same_bits(x, expected)
    assert x._version == version + 1


@all_in_place
@pytest.mark.parametrize("layout", ["sliced", "stepped", "expanded"])
def test_in_place_on_tensors_with_gaps_or_overlaps_is_that_of_torch(name: str, layout: str) -> None:
    x = random_tensor((3, 5, 9), layout=layout)
    clones = [LAYOUTS[layout](x.clone()) for _ in range(2)]
    assert_same_outcome(
        lambda: IN_PLACE[name](fastdl.functional, clones[0], True),
        lambda: IN_PLACE[name](torch.nn.functional, clones[1], True),
    )


@all_in_place
def test_in_place_with_a_gradient_is_differentiated_as_by_torch(name: str) -> None:
    leaf = random_tensor((3, 5, 9)).requires_grad_()
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        x = leaf * 2
        view = x[1:]
        version = x._version
        y = IN_PLACE[name](module, view, True)
        assert y is view and x._version > version
        results.append([x.detach(), *torch.autograd.grad(x.sin().sum(), leaf)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@all_dtypes
def test_in_place_in_a_graph_is_differentiated(name: str, dtype: torch.dtype) -> None:
    leaf = random_tensor((3, 5, 9), dtype).requires_grad_()
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        x = leaf * 2
        view = x[1:]
        with fastdl.strict():
            assert IN_PLACE[name](module, x, True) is x
        (grad,) = torch.autograd.grad(view.sin().sum(), leaf, create_graph=True)
        results.append([x.detach(), grad.detach(), *torch.autograd.grad(grad.sum(), leaf)])
    torch.testing.assert_close(*results)
    x = leaf * 2
    y = x.exp()  # backward needs y
    IN_PLACE[name](fastdl.functional, y, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@all_in_place
def test_in_place_where_torch_forbids_it_is_the_error_of_torch(name: str) -> None:
    def on_leaf(module: ModuleType) -> Tensor:
        return IN_PLACE[name](module, torch.ones(3, requires_grad=True), True)

    def on_saved(module: ModuleType) -> Any:
        leaf = torch.ones(3, requires_grad=True)
        x = leaf * 2
        y = x.exp()
        z = y.sin()
        IN_PLACE[name](module, y, True)
        try:
            return torch.autograd.grad(z.sum(), leaf)
        except RuntimeError as error:  # it names the last function that wrote the tensor
            raise RuntimeError(
                re.sub("output 0 of [^,]+,", "output 0 of it,", str(error))
            ) from None

    for call in (on_leaf, on_saved):
        outcome = assert_same_outcome(
            lambda: call(fastdl.functional),  # noqa: B023
            lambda: call(torch.nn.functional),  # noqa: B023
            warnings=False,
        )
        assert outcome.error is not None


@all_in_place
def test_in_place_without_a_graph_is_allowed_where_torch_allows_it(name: str) -> None:
    parameter = random_tensor((3, 5)).requires_grad_()
    expected = IN_PLACE[name](torch.nn.functional, parameter.detach().clone(), True)
    with torch.no_grad(), fastdl.strict():
        assert IN_PLACE[name](fastdl.functional, parameter, True) is parameter
    torch.testing.assert_close(parameter.detach(), expected)
    with torch.inference_mode():
        x = random_tensor((3, 5))
        assert IN_PLACE[name](fastdl.functional, x, True) is x


@pytest.mark.parametrize("inplace", [1, 0, "yes", None])
def test_other_kinds_of_inplace_mean_what_they_mean_to_torch(inplace: Any) -> None:
    for name in IN_PLACE:
        clones = [torch.linspace(-1, 1, 5) for _ in range(2)]
        assert_same_outcome(
            lambda: IN_PLACE[name](fastdl.functional, clones[0], inplace),  # noqa: B023
            lambda: IN_PLACE[name](torch.nn.functional, clones[1], inplace),  # noqa: B023
        )
        assert_same_bits(*clones)


@pytest.mark.parametrize(
    "value", [True, -1, 10**400, math.nan, math.inf, "1", None, torch.ones(())]
)
def test_every_kind_of_slope_and_alpha(value: Any) -> None:
    x = torch.linspace(-1, 1, 5)
    for function in ("leaky_relu", "elu"):
        assert_same_outcome(
            lambda: getattr(fastdl.functional, function)(x, value),  # noqa: B023
            lambda: getattr(torch.nn.functional, function)(x, value),  # noqa: B023
        )


@pytest.mark.parametrize("value", ["erf", None, "", 3])
def test_unknown_approximations_are_the_error_of_torch(value: Any) -> None:
    outcome = assert_same_outcome(
        lambda: fastdl.functional.gelu(torch.ones(3), value),
        lambda: torch.nn.functional.gelu(torch.ones(3), approximate=value),
    )
    assert outcome.error is not None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ReLU", (True,)), ("SiLU", (True,)), ("LeakyReLU", (0.3, True)), ("ELU", (0.5, True))],
)
def test_modules_in_place(name: str, arguments: tuple[Any, ...]) -> None:
    fast, native = (getattr(m, name)(*arguments) for m in (fastdl.nn, torch.nn))
    x = random_tensor((3, 5, 9))
    own, other = x.clone(), x.clone()
    with fastdl.strict():
        assert fast(own) is own
    native(other)
    assert_same_metadata(own, other)
    torch.testing.assert_close(own, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "tanh", "silu"])  # keep a bit each, output and input
def test_more_than_2_to_the_31_elements(name: str) -> None:
    size = 2**31 + 4099
    x = torch.full((size,), 0.25, dtype=torch.bfloat16)
    parts = [slice(0, 7), slice(size - 4106, size - 4092), slice(size - 7, size)]
    for part in parts:
        x[part].normal_()
    output = FUNCTIONS[name](fastdl.functional, x.requires_grad_())
    (grad,) = torch.autograd.grad(output, x, output.detach())
    for part in parts:
        leaf = x.detach()[part].requires_grad_()
        expected = FUNCTIONS[name](torch.nn.functional, leaf)
        (expected_grad,) = torch.autograd.grad(expected, leaf, output.detach()[part])
        for got, want in ((output[part], expected), (grad[part], expected_grad)):
            torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
