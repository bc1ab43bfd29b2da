"""Pooling: values, indices and gradients next to torch's, for all windows, layouts and dtypes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests.compare import (
    Call,
    assert_as_accurate_as_torch,
    assert_same_bits,
    assert_same_metadata,
    check_function,
)
from tests.tensors import DTYPES, LAYOUTS, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

# kernel_size, stride, padding, dilation, ceil_mode
SLIDING: list[tuple[Any, Any, Any, Any, bool]] = [
    (1, 1, 0, 1, False),
    (1, 2, 0, 1, False),  # FPN
    (2, 2, 0, 1, False),  # VGG
    (3, 1, 1, 1, False),  # Inception
    (3, 2, 1, 1, False),  # ResNet
    (3, 2, 0, 1, True),  # SqueezeNet
    (2, None, 1, 1, True),
    (3, 3, 1, 1, True),
    (4, 3, 2, 1, True),
    (5, 1, 2, 1, False),  # YOLO
    (5, 4, 1, 1, False),
    ((3, 2), (2, 1), (1, 0), 1, False),
    ((1, 4), (1, 2), (0, 2), 1, True),
    ((4, 1), (5, 1), (1, 0), 1, True),
    (3, 1, 1, 2, False),
    (3, 2, 1, 2, True),
    (2, 3, 1, 3, False),
    ((2, 3), (1, 2), 1, (3, 2), False),
]
SHAPES = [(2, 3, 7, 9), (1, 5, 8, 8), (2, 16, 9, 17), (3, 35, 6, 7), (2, 2, 13, 67)]
OUTPUT_SIZES: list[Any] = [1, 2, 3, (5, 4), (7, 7), (1, 3), (4, 1), (None, 2), 6, (11, 13)]


def pool(name: str, *arguments: Any, **options: Any) -> Call:
    """The call of one function with these arguments behind the input."""
    return lambda module, x: getattr(module, name)(x, *arguments, **options)


def with_gradient(call: Call, module: Any, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The output, indices if there are any, and the gradient of the input."""
    leaf = x.detach().requires_grad_()
    result = call(module, leaf)
    output, *indices = result if isinstance(result, tuple) else (result,)
    if grad is None:
        grad = torch.linspace(-2, 1, output.numel()).reshape(output.shape)
    (dx,) = torch.autograd.grad(output, leaf, grad.to(output.dtype))
    return [output, *indices, dx]


def check_max(call: Call, x: Tensor, label: str, grad: Tensor | None = None) -> None:
    """Values and indices are those of torch, with and without them; gradients as accurate."""
    for indices in (False, True):
        which = partial(call, return_indices=True) if indices else call
        with fastdl.strict():
            fast = with_gradient(which, fastdl.functional, x, grad)
        native = with_gradient(which, torch.nn.functional, x, grad)
        exact = with_gradient(which, torch.nn.functional, x.double(), grad)
        for ours, theirs in zip(fast[:-1], native[:-1], strict=True):
            assert_same_bits(ours, theirs, label)
            assert_same_metadata(ours, theirs, label)
        assert_as_accurate_as_torch(fast[-1], native[-1], exact[-1], gradient=True, label=label)
    assert_same_bits(call(fastdl.functional, x), native[0].detach(), f"{label} without gradient")


def max_call(name: str, *arguments: Any) -> Call:
    def call(module: Any, x: Tensor, return_indices: bool = False) -> Any:
        return getattr(module, name)(x, *arguments, return_indices=return_indices)

    return call


def check_average(call: Call, x: Tensor, label: str, grad: Tensor | None = None) -> None:
    """Values and gradients are as accurate as torch's."""
    with fastdl.strict():
        fast = with_gradient(call, fastdl.functional, x, grad)
    native = with_gradient(call, torch.nn.functional, x, grad)
    exact = with_gradient(call, torch.nn.functional, x.double(), grad)
    assert_same_metadata(fast[0], native[0], label)
    for number in (0, 1):
        assert_as_accurate_as_torch(
            fast[number], native[number], exact[number], gradient=number > 0, label=label
        )
    assert_same_bits(call(fastdl.functional, x), fast[0].detach(), f"{label} without gradient")


def fits(shape: tuple[int, ...], windows: tuple[Any, ...]) -> bool:
    """Whether torch has an output for these windows."""
    kernel, _, padding, dilation, _ = windows
    for d, size in enumerate(shape[-2:]):
        k, p, step = (v[d] if isinstance(v, tuple) else v for v in (kernel, padding, dilation))
        if size + 2 * p < step * (k - 1) + 1 or (step >= size and p > 0 and step > 1):
            return False
    return True


@pytest.mark.every_isa
@all_dtypes
@both_formats
@pytest.mark.parametrize("windows", SLIDING, ids=str)
def test_max_pool2d(windows: tuple[Any, ...], layout: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        if fits(shape, windows):
            x = random_tensor(shape, dtype, layout)
            check_max(max_call("max_pool2d", *windows), x, f"{shape} {windows}")


@pytest.mark.every_isa
@all_dtypes
@both_formats
@pytest.mark.parametrize("windows", [w for w in SLIDING if w[3] == 1], ids=str)
def test_avg_pool2d(windows: tuple[Any, ...], layout: str, dtype: torch.dtype) -> None:
    kernel, stride, padding, _, ceil_mode = windows
    for number, shape in enumerate(SHAPES):
        x = random_tensor(shape, dtype, layout)
        for divisor in (None, 3, -7)[: 3 if number == 0 else 1]:
            for count in (True, False):
                arguments = (kernel, stride, padding, ceil_mode, count, divisor)
                check_average(pool("avg_pool2d", *arguments), x, f"{shape} {arguments}")


@pytest.mark.every_isa
@all_dtypes
@both_formats
def test_adaptive_pooling_in_two_dimensions(layout: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = random_tensor(shape, dtype, layout)
        for size in OUTPUT_SIZES:
            check_max(max_call("adaptive_max_pool2d", size), x, f"{shape} {size}")
            check_average(pool("adaptive_avg_pool2d", size), x, f"{shape} {size}")


@pytest.mark.every_isa
@all_dtypes
def test_pooling_in_one_dimension(dtype: torch.dtype) -> None:
    for size in (1, 2, 7, 16, 33, 130):
        x = random_tensor((2, 3, size), dtype)
        for windows in SLIDING:
            kernel, stride, padding, dilation, ceil_mode = windows
            if isinstance(kernel, tuple) or not fits((size, size), windows):
                continue
            check_max(max_call("max_pool1d", *windows), x, f"{size} {windows}")
            if dilation == 1:
                arguments = (kernel, stride, padding, ceil_mode, False)
                check_average(pool("avg_pool1d", *arguments), x, f"{size} {arguments}")
        for output in (1, 2, 5, 16):
            check_max(max_call("adaptive_max_pool1d", output), x, f"{size} to {output}")
            check_average(pool("adaptive_avg_pool1d", output), x, f"{size} to {output}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_batched_or_not(layout: str, dtype: torch.dtype) -> None:
    for shape in ((2, 4, 9, 11), (1, 1, 9, 11), (2, 1, 9, 11), (4, 9, 11)):
        x = random_tensor(shape, dtype, layout)
        check_max(max_call("max_pool2d", 3, 2, 1), x, str(shape))
        check_average(pool("avg_pool2d", 3, 2, 1), x, str(shape))
        for size in (1, 4):
            check_max(max_call("adaptive_max_pool2d", size), x, str(shape))
            check_average(pool("adaptive_avg_pool2d", size), x, str(shape))
    for shape in ((3, 5, 19), (5, 19)):
        x = random_tensor(shape, dtype, layout)
        check_max(max_call("max_pool1d", 3, 2, 1), x, str(shape))
        check_average(pool("avg_pool1d", 3, 2, 1), x, str(shape))
        check_max(max_call("adaptive_max_pool1d", 3), x, str(shape))
        check_average(pool("adaptive_avg_pool1d", 3), x, str(shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", ["contiguous", "channels_last"])
def test_every_layout_of_grad_output(layout: str, input_layout: str) -> None:
    x, grad = random_tensor((2, 4, 8, 10), layout=input_layout), random_tensor((2, 4, 4, 5))
    grad = LAYOUTS[layout](grad)
    check_max(max_call("max_pool2d", 3, 2, 1), x, layout, grad)
    check_average(pool("avg_pool2d", 3, 2, 1), x, layout, grad)


@both_formats
@pytest.mark.usefixtures("threads")
def test_work_split_among_threads_gives_the_same_bits(layout: str) -> None:
    for shape in ((2, 24, 57, 61), (1, 1, 331, 300), (1, 40, 2, 2300)):
        x = random_tensor(shape, torch.float32, layout)
        for call in (
            pool("max_pool2d", (2, 3), 2, 1),
            pool("avg_pool2d", (2, 3), (1, 2), 1),
            pool("max_pool2d", 2, (1, 3), 1),
            pool("adaptive_avg_pool2d", (2, 7)),
        ):
            torch.set_num_threads(3)
            split = with_gradient(call, fastdl.functional, x)
            torch.set_num_threads(1)
            whole = with_gradient(call, fastdl.functional, x)
            native = with_gradient(call, torch.nn.functional, x)
            for ours, alone, theirs in zip(split, whole, native, strict=True):
                assert_same_bits(ours, alone)
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "call",
    [
        pool("max_pool2d", 3, 2, 1),
        pool("max_pool2d", 2, 2, 1, 2, True),
        pool("avg_pool2d", 3, 2, 1, True, False),
        pool("avg_pool2d", (2, 3), divisor_override=5),
        pool("adaptive_max_pool2d", (3, None)),
        pool("adaptive_avg_pool2d", (3, 4)),
    ],
)
def test_values_and_gradients_are_those_of_the_formula(call: Call) -> None:
    check_function(call, random_tensor((2, 3, 6, 7)))


@given(data=st.data())
def test_any_windows_shape_dtype_and_layout(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "sliced"]), "layout")
    shape = (*(data.draw(st.integers(1, 20)) for _ in range(2)),
             *(data.draw(st.integers(4, 40)) for _ in range(2)))  # fmt: skip
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 5)) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    ceil_mode = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    x = random_tensor(shape, dtype, layout)
    check_max(max_call("max_pool2d", kernel, stride, padding, 1, ceil_mode), x, "max")
    check_average(pool("avg_pool2d", kernel, stride, padding, ceil_mode, False), x, "average")
    size = tuple(data.draw(st.integers(1, 12)) for _ in range(2))
    check_max(max_call("adaptive_max_pool2d", size), x, f"adaptive {size}")
    check_average(pool("adaptive_avg_pool2d", size), x, f"adaptive {size}")
