"""Winograd's algorithm: its own bound of errors, special values, and how it is switched off."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from tests import reference
from tests.compare import (
    assert_as_accurate_as_torch,
    assert_same_bits,
    assert_same_metadata,
    unit_in_the_last_place,
    values_and_gradients,
)
from tests.conv_calls import check, conv, tensors_of
from tests.tensors import REDUCED_DTYPES, dtype_name

both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

DIRECT_FACTOR = 10.0  # errors of Winograd / errors of torch, at most
LARGEST_SHARE = 5e-6  # of the largest output, at most
ULPS = 8.0  # of the largest output, where torch's error is nearly none: few channels
# batch, channels in and out, groups, height, width
SHAPES = [
    (2, 64, 64, 1, 56, 56),
    (1, 128, 128, 1, 28, 28),
    (2, 256, 64, 1, 14, 14),
    (2, 512, 96, 1, 7, 7),
    (3, 3, 5, 1, 11, 13),
    (1, 1, 1, 1, 3, 3),
    (2, 17, 33, 1, 10, 9),
    (1, 40, 8, 1, 33, 1),
]


def assert_winograd_is_accurate(actual: Tensor, native: Tensor, exact: Tensor, label: str) -> None:
    """The exception of the design: float32 only, outputs and gradients alike."""
    largest = exact.abs().max().item()
    error, theirs = ((t.double() - exact).abs().max().item() for t in (actual, native))
    slack = ULPS * unit_in_the_last_place(largest, torch.float32)
    assert error <= DIRECT_FACTOR * theirs + slack, f"{label}: {error:.2e}, torch {theirs:.2e}"
    assert error <= LARGEST_SHARE * largest + slack / 2, f"{label}: {error:.2e} of {largest:.2e}"


def check_winograd(call: Any, tensors: list[Tensor], label: str) -> None:
    native = call(torch.nn.functional, *tensors)
    grad = torch.randn_like(native)
    results = [
        values_and_gradients(call, module, own, grad.to(own[0].dtype))
        for module, own in (
            (fastdl.functional, tensors),
            (torch.nn.functional, tensors),
            (reference, [t.double() for t in tensors]),
        )
    ]
    assert_same_metadata(results[0][0], results[1][0], label)
    for number, triple in enumerate(zip(*([y, *grads] for y, grads in results), strict=True)):
        actual, theirs, exact = (t.detach() for t in triple)
        if number < 3:
            assert_winograd_is_accurate(actual, theirs, exact, f"{label}, {number}")
        else:  # of the bias: a plain sum
            assert_as_accurate_as_torch(actual, theirs, exact, gradient=True, label=label)


@pytest.mark.every_isa
@both_formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_stay_within_the_bound(shape: tuple[int, ...], layout: str) -> None:
    for padding in (0, 1, 2):
        for seed in range(2):
            if shape[5] + 2 * padding < 3:
                continue
            torch.manual_seed(seed)
            tensors = tensors_of(shape, 3, torch.float32, layout)
            check_winograd(conv("conv2d", 1, padding), tensors, f"{shape} {padding}")


@both_formats
def test_errors_of_inputs_far_from_zero_stay_within_the_bound(layout: str) -> None:
    x, weight, bias = tensors_of((2, 64, 32, 1, 28, 28), 3, torch.float32, layout)
    for own in (x.relu(), x + 3, x * 1e4, x * 1e-4):
        check_winograd(conv("conv2d", 1, 1), [own, weight, bias], "")


@pytest.mark.every_isa
@both_formats
@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_16_bit_types_are_as_accurate_as_with_torch(dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES[2:]:
        if shape[5] > 1:
            check(conv("conv2d", 1, 1), *tensors_of(shape, 3, dtype, layout))


@pytest.mark.usefixtures("threads")
@both_formats
def test_two_runs_give_the_same_bits(layout: str) -> None:
    tensors = tensors_of((3, 48, 40, 1, 30, 28), 3, torch.float32, layout)
    grad = torch.randn(3, 40, 30, 28)
    first, second = (
        values_and_gradients(conv("conv2d", 1, 1), fastdl.functional, list(tensors), grad)
        for _ in range(2)
    )
    for one, other in zip([first[0], *first[1]], [second[0], *second[1]], strict=True):
        assert_same_bits(one, other)


@both_formats
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_reach_their_windows_and_at_most_their_tiles(
    value: float, layout: str
) -> None:
    x, weight, _ = tensors_of((2, 16, 24, 1, 30, 28), 3, torch.float32, layout)
    clean = fastdl.functional.conv2d(x, weight, padding=1)
    x[1, 5, 14, 13] = value
    native = torch.nn.functional.conv2d(x, weight, padding=1)
    output = fastdl.functional.conv2d(x, weight, padding=1)
    assert not output[~native.isfinite()].isfinite().any()
    far = torch.ones_like(output, dtype=torch.bool)
    far[1, :, 14 - 8 : 14 + 9, 13 - 8 : 13 + 9] = False
    assert_same_bits(output[far], clean[far])
    with fastdl.allow_winograd(False):
        output = fastdl.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(output, native, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_it_can_be_switched_off_by_a_call_and_for_a_block() -> None:
    x, weight, _ = tensors_of((2, 64, 64, 1, 28, 28), 3, torch.float32)

    def output() -> Tensor:
        return fastdl.functional.conv2d(x, weight, padding=1)

    fast = output()
    with fastdl.allow_winograd(False):
        direct = output()
        assert not torch.equal(direct, fast)
        with fastdl.allow_winograd():
            assert_same_bits(output(), fast)
        assert_same_bits(output(), direct)
        others: list[Tensor] = []
        thread = threading.Thread(target=lambda: others.append(output()))
        thread.start()
        thread.join()
        assert_same_bits(others[0], direct)  # in all threads
    assert_same_bits(output(), fast)
    fastdl.allow_winograd(False)
    try:
        assert_same_bits(output(), direct)
    finally:
        fastdl.allow_winograd(True)
    with pytest.raises(KeyError), fastdl.allow_winograd(False):
        raise KeyError
    assert_same_bits(output(), fast)
