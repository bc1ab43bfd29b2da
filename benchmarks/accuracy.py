"""How exact fastdl is next to torch: both against the same computation in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness import Call, Inputs, Prepare

Outputs = Callable[[Call], list[torch.Tensor]]


def outputs_of_one_call(call: Call) -> list[torch.Tensor]:
    """What one call returns, as a list."""
    result = call()
    if isinstance(result, torch.Tensor):
        return [result]
    assert isinstance(result, (tuple, list))
    return list(result)


def measure_error_ratio(
    fast: Prepare, native: Prepare, inputs: Inputs, outputs: Outputs = outputs_of_one_call
) -> float | None:
    """Largest error of fastdl divided by the largest error of torch in the same dtype.

    The worst output counts. An error below half a unit in the last place of the largest value
    counts as that, since rounding the exact result would leave as much. None for float64, where
    the reference is no better than what it judges.
    """
    if inputs[0].dtype == torch.float64:
        return None
    copies = [[tensor.clone() for tensor in inputs] for _ in range(2)]
    exact = outputs(native([tensor.double() for tensor in inputs]))
    actual = zip(outputs(fast(copies[0])), outputs(native(copies[1])), exact, strict=True)
    return max(error_ratio(*triple) for triple in actual)


def error_ratio(fast: torch.Tensor, native: torch.Tensor, exact: torch.Tensor) -> float:
    """The ratio for one output."""
    half_unit = 0.5 * torch.finfo(native.dtype).eps * exact.abs().max().item()
    fast_error, native_error = (
        max((result.double() - exact).abs().max().item(), half_unit) for result in (fast, native)
    )
    return fast_error / native_error if fast_error != native_error else 1.0
