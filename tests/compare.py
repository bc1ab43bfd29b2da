"""The one accuracy rule of fastdl, and the comparison of a function with torch's that uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as native_functional
from torch import Tensor

import fastdl
from tests import reference

VALUE_FACTOR = 2.0  # errors of fastdl / errors of torch, at most
GRADIENT_FACTOR = 3.0
VALUE_ULPS = 2.0  # what a different, equally good order of operations may cost
GRADIENT_ULPS = 4.0  # gradients are often differences of larger numbers
FLOAT64_ULPS = 64.0  # the same where the reference is rounded itself, at every step of its own

# A call of one op with the functions of the module that is passed: torch's, fastdl's or the
# reference's.
Call = Callable[..., Tensor]


def unit_in_the_last_place(value: float, dtype: torch.dtype) -> float:
    """The distance between neighbouring numbers of this type at `value`."""
    info = torch.finfo(dtype)
    _, exponent = math.frexp(max(abs(value), info.smallest_normal))
    return math.ldexp(info.eps, exponent - 1)


def assert_as_accurate_as_torch(
    actual: Tensor,
    native: Tensor,
    exact: Tensor,
    *,
    gradient: bool = False,
    atol: float = 0.0,
    label: str = "",
) -> None:
    """Maximum and mean error of `actual` are at most twice (gradients: 3 times) those of `native`.

    Both are measured against `exact`, and each may have a few units in the last place of the
    largest exact value more (in float64 64, for the reference is no better there). In a mean over n
    elements these average out, so that it gets a sqrt(n)-th of them; not so in float64. `atol`
    more is for differences of numbers larger than the result. NaN and infinities must be where
    torch has them.
    """
    assert actual.shape == native.shape, f"{label}: shape {actual.shape}, torch {native.shape}"
    assert actual.dtype == native.dtype, f"{label}: {actual.dtype}, torch {native.dtype}"
    assert exact.dtype == torch.float64, f"{label}: the reference is in {exact.dtype}"
    assert exact.shape == native.shape, f"{label}: the reference has shape {exact.shape}"
    fast, theirs, exact = (t.detach().double() for t in (actual, native, exact))
    assert_same_where(fast.isnan(), theirs.isnan(), fast, theirs, f"{label}: NaN")
    for infinity in (math.inf, -math.inf):
        pattern, expected = fast == infinity, theirs == infinity
        assert_same_where(pattern, expected, fast, theirs, f"{label}: {infinity}")
    finite = theirs.isfinite()
    assert exact[finite].isfinite().all(), f"{label}: the reference is not finite where torch is"
    if not finite.any():
        return
    zero = exact.new_zeros(())
    error = torch.where(finite, (fast - exact).abs(), zero)
    native_error = torch.where(finite, (theirs - exact).abs(), zero)
    largest = exact[finite].abs().max().item()
    is_double = native.dtype == torch.float64
    factor = GRADIENT_FACTOR if gradient else VALUE_FACTOR
    ulps = FLOAT64_ULPS if is_double else GRADIENT_ULPS if gradient else VALUE_ULPS
    slack = ulps * unit_in_the_last_place(largest, native.dtype) + atol
    worst, bound = error.max().item(), factor * native_error.max().item() + slack
    if worst > bound:
        at = index_of(error, int(error.argmax()))
        raise AssertionError(
            f"{label}: maximum error {worst:.3e} exceeds {bound:.3e} ({factor:g} x torch's "
            f"{native_error.max().item():.3e} + {ulps:g} ulp of {largest:.3e}); at {at} fastdl "
            f"{fast[at].item()!r}, torch {theirs[at].item()!r}, exact {exact[at].item()!r}"
        )
    count = int(finite.sum())
    mean, native_mean = error.sum().item() / count, native_error.sum().item() / count
    mean_slack = slack if is_double else max(slack / math.sqrt(count), atol)
    if mean > factor * native_mean + mean_slack:
        raise AssertionError(
            f"{label}: mean error {mean:.3e} exceeds {factor:g} x torch's {native_mean:.3e} "
            f"+ {mean_slack:.3e} (over {count} elements)"
        )


def assert_close_or_accurate(
    actual: Tensor, native: Tensor, exact: Tensor, *, gradient: bool = False, label: str = ""
) -> None:
    """The rule where `exact` is torch's own float64 result, which cannot judge torch's float64."""
    if native.dtype == torch.float64:
        torch.testing.assert_close(actual, native, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        assert_as_accurate_as_torch(actual, native, exact, gradient=gradient, label=label)


def index_of(tensor: Tensor, flat: int) -> tuple[int, ...]:
    """The index of the element at this position in row-major order."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape))


def assert_same_where(
    pattern: Tensor, expected: Tensor, fast: Tensor, theirs: Tensor, label: str
) -> None:
    """The two masks are equal; else names the first index where they are not."""
    differs = pattern != expected
    if differs.any():
        at = index_of(differs, int(differs.to(torch.uint8).argmax()))
        raise AssertionError(
            f"{label} is not where torch has it ({int(differs.sum())} elements): at {at} fastdl "
            f"{fast[at].item()!r}, torch {theirs[at].item()!r}"
        )


def assert_same_bits(actual: Tensor, expected: Tensor, label: str = "") -> None:
    """Equal shape, dtype and every bit, NaN payloads apart."""
    assert actual.dtype == expected.dtype, f"{label}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{label}: {actual.shape}, expected {expected.shape}"
    same = (actual == expected) & (actual.signbit() == expected.signbit())
    same |= actual.isnan() & expected.isnan()
    if not same.all():
        at = index_of(same, int((~same).to(torch.uint8).argmax()))
        raise AssertionError(
            f"{label}: {int((~same).sum())} elements differ, the first at {at}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r}"
        )


def assert_same_metadata(
    actual: Tensor, native: Tensor, label: str = "", strides: bool = True
) -> None:
    """What a tensor says of itself, values apart, is as with torch."""
    for name in ("shape", "dtype", "device", "layout", "requires_grad", "is_leaf"):
        got, expected = getattr(actual, name), getattr(native, name)
        assert got == expected, f"{label}: {name} is {got}, torch {expected}"
    # Those of an empty tensor, or of a dimension of size 1, address nothing.
    if strides and native.layout == torch.strided and native.numel() > 0:
        got, expected = (
            [step for step, size in zip(t.stride(), t.shape, strict=True) if size != 1]
            for t in (actual, native)
        )
        assert got == expected, f"{label}: strides {actual.stride()}, torch {native.stride()}"
    assert actual.is_inference() == native.is_inference(), f"{label}: inference tensor or not"


def values_and_gradients(
    call: Call, module: ModuleType, tensors: list[Tensor | None], grad_output: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The output of one call on fresh leaves, and the gradient of every tensor among them."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    output = call(module, *leaves)
    if grad_output is None:
        return output, []
    wanted = [leaf for leaf in leaves if leaf is not None]
    return output, list(torch.autograd.grad(output, wanted, grad_output))


def check_function(
    call: Call,
    *tensors: Tensor | None,
    label: str = "",
    gradients: bool = True,
    grad_output: Tensor | None = None,
    kernel: bool = True,
    strides: bool = True,
    atol: float = 0.0,
) -> None:
    """`call` with fastdl's functions is as accurate as with torch's, gradients included.

    The output also has torch's strides (unless strides=False), the inputs keep their values, and no
    part is handed over to native torch (unless kernel=False).
    """
    inputs = list(tensors)
    before = [t if t is None else t.clone() for t in inputs]
    native, _ = values_and_gradients(call, native_functional, inputs)
    if gradients and grad_output is None:
        grad_output = torch.randn_like(native, dtype=torch.float64).to(native.dtype)
    grad = grad_output if gradients else None
    native, native_grads = values_and_gradients(call, native_functional, inputs, grad)
    if kernel:
        with fastdl.strict():
            fast, fast_grads = values_and_gradients(call, fastdl.functional, inputs, grad)
    else:
        fast, fast_grads = values_and_gradients(call, fastdl.functional, inputs, grad)
    assert_same_metadata(fast, native, label, strides)
    exact_grad = None if grad is None else grad.double()
    exact_inputs: list[Any] = [t if t is None else t.double() for t in inputs]
    exact, exact_grads = values_and_gradients(call, reference, exact_inputs, exact_grad)
    assert_as_accurate_as_torch(fast, native, exact, atol=atol, label=label)
    for number, triple in enumerate(zip(fast_grads, native_grads, exact_grads, strict=True)):
        name = f"{label}: gradient {number}"
        assert_same_metadata(triple[0], triple[1], name, strides=False)
        assert_as_accurate_as_torch(*triple, gradient=True, atol=atol, label=name)
    for number, (tensor, copy) in enumerate(zip(inputs, before, strict=True)):
        if tensor is not None and copy is not None:
            assert_same_bits(tensor, copy, f"{label}: input {number} afterwards")
