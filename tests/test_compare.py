"""The accuracy rule itself: what it lets pass and what it does not."""

from __future__ import annotations

import math

import pytest
import torch

from tests.compare import (
    assert_as_accurate_as_torch,
    assert_same_bits,
    assert_same_metadata,
    unit_in_the_last_place,
)

EXACT = torch.linspace(-1, 1, 101, dtype=torch.float64)
ULP = 2.0**-23


def with_error(error: float, index: int = 50) -> torch.Tensor:
    values = EXACT.clone()
    values[index] += error
    return values.float()


def test_unit_in_the_last_place_is_the_spacing_of_the_type() -> None:
    assert unit_in_the_last_place(1.0, torch.float32) == 2.0**-23
    assert unit_in_the_last_place(-3.9, torch.float32) == 2.0**-22
    assert unit_in_the_last_place(1.0, torch.bfloat16) == 2.0**-7


def test_a_result_like_torch_passes() -> None:
    assert_as_accurate_as_torch(EXACT.float(), EXACT.float(), EXACT)


def test_twice_the_error_of_torch_passes_and_three_times_fails() -> None:
    native = with_error(1e-3)
    assert_as_accurate_as_torch(with_error(2e-3), native, EXACT)
    with pytest.raises(AssertionError, match=r"maximum error .* at \(7,\) fastdl"):
        assert_as_accurate_as_torch(with_error(3e-3, index=7), native, EXACT)


def test_gradients_may_have_three_times_the_error_and_not_four() -> None:
    native = with_error(1e-3)
    assert_as_accurate_as_torch(with_error(3e-3), native, EXACT, gradient=True)
    with pytest.raises(AssertionError, match="maximum error"):
        assert_as_accurate_as_torch(with_error(4e-3), native, EXACT, gradient=True)


def test_a_few_units_in_the_last_place_pass_where_torch_is_exact() -> None:
    assert_as_accurate_as_torch(with_error(2 * ULP / 2), EXACT.float(), EXACT)
    with pytest.raises(AssertionError, match="maximum error"):
        assert_as_accurate_as_torch(with_error(3 * ULP), EXACT.float(), EXACT)


def test_a_small_error_everywhere_fails_by_its_mean() -> None:
    native = EXACT.float()
    with pytest.raises(AssertionError, match="mean error"):
        assert_as_accurate_as_torch(native + ULP, native, EXACT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_special_value_must_be_where_torch_has_it(value: float) -> None:
    native = EXACT.float()
    native[3] = value
    exact = EXACT.clone()
    exact[3] = value
    assert_as_accurate_as_torch(native.clone(), native, exact)
    with pytest.raises(AssertionError, match=r"not where torch has it .* at \(3,\)"):
        assert_as_accurate_as_torch(EXACT.float(), native, exact)
    with pytest.raises(AssertionError, match=r"not where torch has it .* at \(3,\)"):
        assert_as_accurate_as_torch(native, EXACT.float(), EXACT)


def test_infinity_of_the_other_sign_fails() -> None:
    native = torch.tensor([math.inf, 1.0])
    with pytest.raises(AssertionError, match="inf"):
        assert_as_accurate_as_torch(torch.tensor([-math.inf, 1.0]), native, native.double())


def test_shape_and_dtype_must_be_those_of_torch() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate_as_torch(EXACT.float()[None], EXACT.float(), EXACT)
    with pytest.raises(AssertionError, match="float64"):
        assert_as_accurate_as_torch(EXACT, EXACT.float(), EXACT)


def test_same_bits_sees_one_bit_and_the_sign_of_zero() -> None:
    assert_same_bits(torch.tensor([0.0, math.nan]), torch.tensor([0.0, math.nan]))
    with pytest.raises(AssertionError, match=r"\(1,\)"):
        assert_same_bits(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0 + ULP]))
    with pytest.raises(AssertionError, match=r"\(0,\)"):
        assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_same_metadata_sees_strides() -> None:
    tensor = torch.zeros(3, 4)
    with pytest.raises(AssertionError, match="strides"):
        assert_same_metadata(torch.zeros(4, 3).t(), tensor)
