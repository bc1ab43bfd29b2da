"""Pooling of special values, of ties and of nothing; windows without end; what torch must judge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from tests.compare import assert_same_bits
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name, random_tensor
from tests.test_pool import check_average, check_max, max_call, pool

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

MAX_CALLS = [
    max_call("max_pool2d", 2),
    max_call("max_pool2d", 3, 2, 1),
    max_call("max_pool2d", 3, 1, 1, 2),
    max_call("max_pool2d", (2, 4), 3),
    max_call("adaptive_max_pool2d", (3, 5)),
    max_call("adaptive_max_pool2d", 1),
]


@pytest.mark.every_isa
@all_dtypes
@both_formats
def test_special_values_and_ties_give_the_maxima_and_indices_of_torch(
    layout: str, dtype: torch.dtype
) -> None:
    # Few different values, so that nearly every window has equal maxima, NaN or only -inf.
    values = torch.tensor([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, -math.inf, -2.0])
    for count in range(2, 9):
        chosen = torch.randint(8 - count, 8, (2, 11, 13, 21))
        x = random_tensor((2, 11, 13, 21), dtype, layout)
        x.copy_(values[chosen].to(dtype))
        for number, call in enumerate(MAX_CALLS):
            check_max(call, x, f"{count} values, call {number}")


@pytest.mark.every_isa
@all_dtypes
def test_special_values_in_one_dimension(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 3.0])
    for size in (9, 70, 300):
        for count in range(1, 7):
            x = values[torch.randint(6 - count, 6, (3, 5, size))].to(dtype)
            check_max(max_call("max_pool1d", 4, 3, 2), x, f"{size}")
            check_max(max_call("adaptive_max_pool1d", 1), x, f"{size} to 1")
            check_max(max_call("adaptive_max_pool1d", 2), x, f"{size} to 2")


@all_dtypes
@both_formats
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_mean_of_special_values(value: float, layout: str, dtype: torch.dtype) -> None:
    x = random_tensor((2, 9, 8, 10), dtype, layout)
    x[0, 1, 2, 3] = value
    x[1, 8, 7, 9] = value
    x[1, 3, 4, :2] = torch.tensor([math.inf, -math.inf]).to(dtype)
    for call in (pool("avg_pool2d", 3, 2, 1), pool("adaptive_avg_pool2d", (3, 4)),
                 pool("adaptive_avg_pool2d", 1), pool("avg_pool2d", 2)):  # fmt: skip
        output, native = call(fastdl.functional, x), call(torch.nn.functional, x)
        torch.testing.assert_close(output, native, equal_nan=True)


@all_dtypes
@both_formats
def test_windows_of_more_than_256_elements(layout: str, dtype: torch.dtype) -> None:
    # Offsets take more than one byte then.
    x = random_tensor((2, 9, 40, 50), dtype, layout)
    for windows in ((17, 5, 3), ((33, 9), 2, (1, 4)), (16, 16), ((1, 49),), ((40, 50),)):
        check_max(max_call("max_pool2d", *windows), x, str(windows))
        check_average(pool("avg_pool2d", *windows), x, str(windows))
    for size in (1, 2, (1, 3)):
        check_max(max_call("adaptive_max_pool2d", size), x, str(size))
        check_average(pool("adaptive_avg_pool2d", size), x, str(size))
    row = random_tensor((2, 3, 3001), dtype)
    for kernel in (300, 3001):
        check_max(max_call("max_pool1d", kernel, 7), row, str(kernel))
        check_max(max_call("max_pool1d", kernel // 8, 5, 3, 2), row, f"{kernel} dilated")


@both_formats
def test_an_empty_batch(layout: str) -> None:
    x = random_tensor((0, 3, 8, 8), layout=layout)
    check_max(max_call("max_pool2d", 2), x, "max")
    check_average(pool("avg_pool2d", 2), x, "average")
    check_average(pool("adaptive_avg_pool2d", 3), x, "adaptive")
    with fastdl.strict():
        assert fastdl.functional.max_pool2d(x, 2).shape == (0, 3, 4, 4)
    leaf = x.requires_grad_()
    for call in (pool("max_pool2d", 2), pool("avg_pool2d", 2)):
        output = call(fastdl.functional, leaf)
        (grad,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
        assert grad.shape == x.shape


@pytest.mark.every_isa
@both_formats
def test_elements_between_windows_have_no_gradient(layout: str) -> None:
    # Several tasks, each with rows that no window has.
    x = random_tensor((2, 70, 200, 63), layout=layout)
    for windows in ((2, 3), ((1, 5), (3, 1)), (1, 4)):
        check_max(max_call("max_pool2d", *windows), x, str(windows))
        check_average(pool("avg_pool2d", *windows), x, str(windows))


@pytest.mark.every_isa
@both_formats
@all_dtypes
def test_means_of_large_planes(layout: str, dtype: torch.dtype) -> None:
    x = random_tensor((2, 3, 256, 300), dtype, layout)
    check_average(pool("adaptive_avg_pool2d", 1), x, "as it is")
    check_average(pool("adaptive_avg_pool2d", 1), x + 3, "far from 0")


X = torch.linspace(-2, 2, 2 * 3 * 6 * 8).reshape(2, 3, 6, 8)
SLIDING_ARGUMENTS: list[tuple[Any, ...]] = [
    (0,), (-1,), (9,), ((2, 2, 2),), ((),), ("2",), (2.0,), (None,), (True,), ([2],), ((2, None),),
    (2, 0), (2, -1), (2, ()), (2, None), (2, (1,)), (2, (None,)), (2, 1, 2), (3, 1, 2), (3, 1, -1),
    (3, 1, (1,)), (3, 1, "1"), (3, 1, None), (2**70,), (2, 2, 1, True),
    (torch.tensor(2),), ((torch.tensor(2), 2),), (torch.Size((2, 2)),),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", SLIDING_ARGUMENTS, ids=repr)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"])
def test_wrong_and_unusual_windows_have_the_outcome_of_torch(
    name: str, arguments: tuple[Any, ...]
) -> None:
    if name == "max_pool2d" and len(arguments) == 4:
        arguments = (*arguments[:3], 2, True)
    x = X if name.endswith("2d") else X[0]
    assert_same_outcome(
        lambda: getattr(fastdl.functional, name)(x, *arguments),
        lambda: getattr(torch.nn.functional, name)(x, *arguments),
        f"{name}{arguments}",
        warnings=False,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "size",
    [0, -1, (2,), [2], (2, 2, 2), (), None, (None, None), (None,), (3, None), "2", 2.0, True, 2**70,
     (2, -1), (0, 2), torch.tensor(2)], ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_wrong_and_unusual_output_sizes_have_the_outcome_of_torch(kind: str, size: Any) -> None:
    for name, x in ((f"adaptive_{kind}_pool2d", X), (f"adaptive_{kind}_pool1d", X[0])):
        assert_same_outcome(
            lambda: getattr(fastdl.functional, name)(x, size),  # noqa: B023
            lambda: getattr(torch.nn.functional, name)(x, size),  # noqa: B023
            f"{name} {size}",
            warnings=False,
        )


@pytest.mark.parametrize(
    "shape",
    [(), (3,), (3, 4), (2, 3, 4, 5, 6), (0, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)],
)
def test_wrong_shapes_have_the_outcome_of_torch(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    for name in fastdl.functional.__all__:
        if "pool" in name:
            assert_same_outcome(
                lambda: getattr(fastdl.functional, name)(x, 2),  # noqa: B023
                lambda: getattr(torch.nn.functional, name)(x, 2),  # noqa: B023
                f"{name} of {shape}",
                warnings=False,
            )


def test_divisors_have_the_outcome_of_torch() -> None:
    for divisor in (None, 1, -3, 0, 2**40):
        assert_same_outcome(
            lambda: fastdl.functional.avg_pool2d(X, 2, divisor_override=divisor),  # noqa: B023
            lambda: torch.nn.functional.avg_pool2d(X, 2, divisor_override=divisor),  # noqa: B023
            repr(divisor),
        )
    for wrong in (True, 2.5, "1"):
        with pytest.raises(TypeError, match=r"'divisor_override'.* must be int, not"):
            fastdl.functional.avg_pool2d(X, 2, divisor_override=wrong)  # type: ignore[arg-type]


def test_dilated_windows_that_may_have_no_element_are_handed_over() -> None:
    x = random_tensor((2, 3, 5, 5))
    output = fastdl.functional.max_pool2d(x, 2, 1, 1, 6)
    assert_same_bits(output, torch.nn.functional.max_pool2d(x, 2, 1, 1, 6))
    ((op, reason, count),) = fastdl.report().hand_overs
    assert (op, count) == ("max_pool2d", 1) and "no element" in reason


def test_integers_are_handed_over() -> None:
    x = torch.arange(64).reshape(1, 8, 8)
    assert torch.equal(fastdl.functional.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
    assert fastdl.report().hand_overs[0][0] == "max_pool2d"


def test_indices_take_part_in_unpooling() -> None:
    x = random_tensor((2, 3, 8, 8)).requires_grad_()
    output, indices = fastdl.functional.max_pool2d(x, 2, return_indices=True)
    assert not indices.requires_grad and indices.dtype == torch.int64
    restored = torch.nn.functional.max_unpool2d(output, indices, 2)
    assert_same_bits(restored[restored != 0], x[restored != 0])


def saved_bytes(call: Any, x: Tensor) -> int:
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(fastdl.functional, x.requires_grad_())
    return sum(sizes)


def test_backward_keeps_one_byte_an_output_of_a_maximum_and_nothing_of_a_mean() -> None:
    assert saved_bytes(pool("max_pool2d", 2), random_tensor((2, 3, 8, 8))) == 2 * 3 * 4 * 4
    assert saved_bytes(pool("avg_pool2d", 2), random_tensor((2, 3, 8, 8))) == 0


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    x = torch.empty(2, 33, 5720, 5720, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    for call in (pool("max_pool2d", 3, 2, 1), pool("avg_pool2d", 2)):
        assert_same_bits(
            call(fastdl.functional, x)[1, -2:], call(torch.nn.functional, x[1:, -2:])[0]
        )
