"""Convolution with a residual and ReLU in one pass: values and gradients of the three steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastdl
from tests import reference
from tests.compare import (
    assert_as_accurate_as_torch,
    assert_same_metadata,
    values_and_gradients,
)
from tests.conv_calls import tensors_of
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

# kernel, stride, padding, dilation
SETTINGS: list[tuple[Any, ...]] = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), ((2, 3), 1, "same", 1)]
SHAPES = [(2, 5, 19, 1, 9, 10), (2, 16, 24, 1, 8, 12), (1, 1, 1, 17, 9, 11)]


@pytest.fixture(autouse=True)
def direct() -> Iterator[None]:
    with fastdl.allow_winograd(False):
        yield


def unfused(dims: int, relu: bool, *arguments: Any, residual: Tensor | None = None) -> Tensor:
    """What torch has."""
    output = (F.conv1d if dims == 1 else F.conv2d)(*arguments)
    output = output if residual is None else output + residual
    return output.relu() if relu else output


def fused(module: Any, dims: int, relu: bool, arguments: Any, residual: Tensor | None) -> Tensor:
    """The function of fastdl or of the reference, or the steps of torch."""
    if module is F:
        return unfused(dims, relu, *arguments, residual=residual)
    if relu:
        return getattr(module, f"conv{dims}d_relu")(*arguments, residual=residual)
    x, weight, *others = arguments
    return getattr(module, f"conv{dims}d_add")(x, weight, residual, *others)


def check(dims: int, relu: bool, tensors: list[Tensor], settings: Any, label: str) -> None:
    def call(module: Any, *own: Tensor) -> Tensor:
        x, weight, bias, *residual = own
        return fused(module, dims, relu, (x, weight, bias, *settings), (*residual, None)[0])

    native = call(F, *tensors)
    grad = torch.randn_like(native)
    results = [
        values_and_gradients(call, module, own, grad.to(own[0].dtype))
        for module, own in (
            (fastdl.functional, tensors),
            (F, tensors),
            (reference, [t.double() for t in tensors]),
        )
    ]
    assert_same_metadata(results[0][0], results[1][0], label)
    # Where rounding decides on which side of 0 an output is, gradients differ: not compared.
    exact = results[2][0]
    if relu and exact.abs().min() == 0 and (exact == 0).float().mean() > 0.9:
        return
    assert_as_accurate_as_torch(results[0][0], results[1][0], exact, label=label)
    for number, triple in enumerate(zip(*(grads for _, grads in results), strict=True)):
        assert_same_metadata(*triple[:2], f"{label} {number}", strides=False)
        assert_as_accurate_as_torch(*triple, gradient=True, label=f"{label}, gradient {number}")


def add_residual(tensors: list[Tensor], dims: int, settings: Any, layout: str) -> list[Tensor]:
    """Away from 0, so that rounding does not decide where ReLU is."""
    output = unfused(dims, False, *tensors, *settings)
    residual = random_tensor(output.shape, torch.float64, layout)
    residual = residual.sign() * 4 - output.double() + output.double().sign() * residual.abs()
    return [*tensors, residual.to(output.dtype)]


@pytest.mark.every_isa
@all_dtypes
@both_formats
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_residual_and_relu(settings: tuple[Any, ...], layout: str, dtype: torch.dtype) -> None:
    kernel, *others = settings
    for shape in SHAPES:
        tensors = tensors_of(shape, kernel, dtype, layout)
        numbers = (*others, shape[3])
        with_residual = add_residual(tensors, 2, numbers, layout)
        check(2, True, with_residual, numbers, f"relu {shape}")
        check(2, False, with_residual, numbers, f"add {shape}")
        *arguments, residual = with_residual
        transposed = residual.transpose(2, 3).contiguous().transpose(2, 3)
        check(2, False, [*arguments, transposed], numbers, f"layout {shape}")


@all_dtypes
def test_sequences_and_unbatched_images(dtype: torch.dtype) -> None:
    tensors = tensors_of((2, 5, 6, 1, 33), 3, dtype)
    numbers = (1, 1, 1, 1)
    with_residual = add_residual(tensors, 1, numbers, "contiguous")
    for relu in (True, False):
        check(1, relu, with_residual, numbers, "sequence")
        x, weight, bias, residual = with_residual
        check(1, relu, [x[0], weight, bias, residual[0]], numbers, "one")


def test_without_a_residual() -> None:
    x, weight, bias = tensors_of((2, 8, 12, 1, 9, 10), 3, torch.float32)
    bias += 3 * bias.sign()
    output = fastdl.functional.conv2d_relu(x, weight, bias, 1, 1)
    expected = F.conv2d(x, weight, bias, 1, 1).relu()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert (output == 0).any()


def test_derivatives_are_those_of_finite_differences() -> None:
    shapes = [(2, 3, 5, 6), (4, 3, 3, 3), (4,), (2, 4, 5, 6)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def call(x: Tensor, w: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return fastdl.functional.conv2d_relu(x, w, b, padding=1, residual=z)

    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


def test_second_derivatives_of_float32() -> None:
    tensors = [*tensors_of((2, 4, 6, 1, 7, 8), 3, torch.float32), torch.randn(2, 6, 7, 8)]
    results = []
    for module in (fastdl.functional, F):
        leaves = [t.clone().requires_grad_() for t in tensors]
        *arguments, residual = leaves
        output = fused(module, 2, True, (*arguments, 1, 1), residual)
        grads = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        total = sum(grad.square().mean() for grad in grads)
        results.append([*grads, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wanted", range(1, 16))
def test_only_the_gradients_that_are_wanted(wanted: int) -> None:
    tensors = [*tensors_of((2, 6, 5, 1, 8, 9), 3, torch.float32), torch.randn(2, 5, 8, 9)]
    results = []
    for module in (fastdl.functional, F):
        own = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        *arguments, residual = own
        fused(module, 2, True, (*arguments, 1, 1), residual).sin().sum().backward()
        results.append([t.grad for t in own])
    for fast, native in zip(*results, strict=True):
        assert (fast is None) == (native is None)
        torch.testing.assert_close(fast, native, rtol=1e-4, atol=1e-4)


def test_residuals_that_are_not_like_the_output_have_the_outcome_of_torch() -> None:
    x, weight, bias = tensors_of((2, 6, 5, 1, 8, 9), 3, torch.float32)
    output = torch.randn(2, 5, 8, 9)
    others = (output[:1], output[0], output[..., :1], output[..., :4], torch.tensor(2.0))
    for residual in (*others, output.double(), output.int(), output.bfloat16(), "text", 1.5):
        for relu in (True, False):
            assert_same_outcome(
                lambda: fused(fastdl.functional, 2, relu, (x, weight, bias, 1, 1), residual),  # noqa: B023
                lambda: fused(F, 2, relu, (x, weight, bias, 1, 1), residual),  # noqa: B023
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(dtype: torch.dtype) -> None:
    tensors = [*tensors_of((2, 6, 5, 1, 8, 9), 3, torch.float32), torch.randn(2, 5, 8, 9)]
    results = []
    for module in (fastdl.functional, F):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with torch.autocast(torch.get_default_device().type, dtype=dtype):
            output = fused(module, 2, True, (*leaves[:3], 1, 1), leaves[3].to(dtype))
        results.append([output, *torch.autograd.grad(output.float().sum(), leaves)])
    for fast, native in zip(*results, strict=True):
        assert_same_metadata(fast, native)
        torch.testing.assert_close(fast, native, rtol=5e-2, atol=5e-2)
