"""Whether a call ends as with torch: the same values, or the same exception."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastdl
from tests.compare import Call, assert_same_metadata, check_function


@dataclass
class Outcome:
    """What a call returned, or the exception that it raised."""

    value: Any = None
    error: BaseException | None = None
    warned: tuple[tuple[type, str], ...] = ()

    def describe(self) -> str:
        if self.error is None:
            return f"returned {type(self.value).__name__}"
        return f"raised {type(self.error).__name__}: {self.error}"


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Runs the call and keeps what came of it."""
    outcome = Outcome()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome.value = call()
        except Exception as error:  # noqa: BLE001 (any exception is an outcome to compare)
            outcome.error = error
    outcome.warned = tuple((w.category, str(w.message)) for w in caught)
    return outcome


def first_line(error: BaseException) -> str:
    """The message without the C++ stack that some errors carry from the second line on."""
    return str(error).split("\nException raised from")[0]


def assert_same_outcome(
    fast: Callable[[], Any], native: Callable[[], Any], label: str = "", *, warnings: bool = True
) -> Outcome:
    """Both calls return tensors that are close and alike, or raise the same; gives fastdl's."""
    expected, got = outcome_of(native), outcome_of(fast)
    if expected.error is not None or got.error is not None:
        assert type(got.error) is type(expected.error), (
            f"{label}: fastdl {got.describe()}\n torch {expected.describe()}"
        )
        assert got.error is not None and expected.error is not None
        assert first_line(got.error) == first_line(expected.error), label
    else:
        assert_alike(got.value, expected.value, label)
    if warnings:
        assert got.warned == expected.warned, f"{label}: warnings {got.warned}"
    return got


def check_where_torch_can(call: Call, *tensors: Tensor | None, **options: Any) -> None:
    """`call` is as accurate as with torch's functions; where those raise, it raises the same."""
    native = outcome_of(lambda: call(torch.nn.functional, *tensors))
    if native.error is None:
        check_function(call, *tensors, **options)
    else:
        assert_same_outcome(
            lambda: call(fastdl.functional, *tensors), lambda: call(torch.nn.functional, *tensors)
        )


def assert_alike(actual: Any, native: Any, label: str = "") -> None:
    """Tensors (also in lists) of the same kind and metadata with close values."""
    assert type(actual) is type(native), f"{label}: {type(actual)}, torch {type(native)}"
    if isinstance(native, (list, tuple)):
        assert len(actual) == len(native), label
        for number, pair in enumerate(zip(actual, native, strict=True)):
            assert_alike(*pair, f"{label}[{number}]")
    elif isinstance(native, Tensor):
        assert_same_metadata(actual, native, label)
        if native.device.type != "meta":
            torch.testing.assert_close(
                actual, native, equal_nan=True, msg=lambda text: f"{label}: {text}"
            )
    else:
        assert actual == native, f"{label}: {actual!r}, torch {native!r}"
