"""The losses where values, targets or the use of the gradient are special."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
import fastdl.functional as fast
from tests.compare import assert_same_bits, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name, random_tensor, special_rows
from tests.test_cross_entropy import REDUCTIONS, indices, loss_of, probabilities

native = torch.nn.functional
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
X = torch.linspace(-2, 2, 15).reshape(3, 5)


@pytest.mark.every_isa
@all_dtypes
def test_special_values_are_treated_like_torch(dtype: torch.dtype) -> None:
    for size in (5, 37):
        for name, x in special_rows(size, dtype).items():
            for target in (torch.arange(6) % size, torch.tensor([-100, size // 2] * 3)):
                for reduction in ("sum", "none"):
                    call = loss_of(target, reduction=reduction)
                    check_function(call, x, label=f"{name}, {size}")
                    columns = x.t().contiguous()[None]
                    call = loss_of(target[None], reduction=reduction)
                    check_function(call, columns, label=f"{name}, {size} columns")


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_infinities_with_spread_targets_are_treated_like_torch(
    dtype: torch.dtype, reduction: str
) -> None:
    x = random_tensor((6, 37), dtype)
    x[1, 3] = -math.inf
    x[2, 7] = math.nan
    x[3] = -math.inf
    x[4, 36] = math.inf
    weight = random_tensor((37,), dtype).abs()
    soft = probabilities((6, 37), dtype)
    soft[1, 3] = 0
    for target in (indices((6, 37)), soft):
        for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
            call = loss_of(target, reduction=reduction, **options)
            check_function(call, x, label=f"{options}")
            call = loss_of(
                target[None] if target.dim() == 1 else target.t()[None].contiguous(),
                reduction=reduction,
                **options,
            )
            check_function(call, x.t()[None].contiguous(), label=f"{options} columns")


@all_dtypes
def test_large_magnitudes(dtype: torch.dtype) -> None:
    for scale in (30.0, 300.0, 3e4):
        x = (scale * torch.randn(5, 131, dtype=torch.float64)).to(dtype)
        for reduction in REDUCTIONS:
            check_function(loss_of(indices((5, 131)), reduction=reduction), x, label=str(scale))


@pytest.mark.cpu_only("on a GPU the kernel stops, as torch's own")
@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("wrong", [5, -1, 7, 2**40, -(2**63)])
def test_targets_out_of_bounds_raise_the_error_of_torch(function: str, wrong: int) -> None:
    for shape in ((3, 5), (5,), (2, 5, 3), (2, 5, 3, 4), (2, 5, 3, 4, 2)):
        target = indices(shape)
        target.view(-1)[-1] = wrong
        x = torch.randn(shape, requires_grad=True)
        for reduction in REDUCTIONS:
            outcome = assert_same_outcome(
                lambda: getattr(fast, function)(x, target, reduction=reduction),  # noqa: B023
                lambda: getattr(native, function)(x, target, reduction=reduction),  # noqa: B023
                f"{shape} {reduction}",
            )
            assert outcome.error is not None
        with fastdl.strict():
            ignored = getattr(fast, function)(x, target, ignore_index=wrong, reduction="sum")
        torch.testing.assert_close(
            ignored, getattr(native, function)(x, target, ignore_index=wrong, reduction="sum")
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_that_are_all_ignored(reduction: str) -> None:
    target = torch.full((3,), -100)
    for function in ("cross_entropy", "nll_loss"):
        check_function(loss_of(target, function, reduction=reduction), X)
    check_function(loss_of(target, reduction=reduction, label_smoothing=0.1), X)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X, torch.tensor([1, 2, 0]).int()), {}),
        ((X, torch.tensor([1, 2, 0, 1])), {}),
        ((X, torch.tensor([1, 2])), {}),
        ((X, X.long()), {}),
        ((X[0], torch.tensor([1])), {}),
        ((X, X.softmax(1).double()), {}),
        ((X, torch.tensor([1, 2, 0]), torch.ones(4)), {}),
        ((X, torch.tensor([1, 2, 0]), torch.ones(5).double()), {}),
        ((X, torch.tensor([1, 2, 0]), torch.ones(5, 1)), {}),
        ((X, X.softmax(1)), {"ignore_index": 2}),
        ((X, torch.tensor([1, 2, 0])), {"label_smoothing": 1.5}),
        ((X, torch.tensor([1, 2, 0])), {"label_smoothing": -0.5}),
        ((X, torch.tensor([1, 2, 0])), {"reduction": "average"}),
        ((X, torch.tensor([1, 2, 0])), {"reduction": None}),
        ((X, torch.tensor([1, 2, 0])), {"size_average": False}),
        ((X, torch.tensor([1, 2, 0])), {"reduce": False}),
        ((X, None), {}),
        ((X.long(), torch.tensor([1, 2, 0])), {}),
        ((X, torch.tensor([1, 2, 0], dtype=torch.uint8)), {}),
        ((torch.tensor(1.0), torch.tensor(0)), {}),
        ((X[:, :0], torch.tensor([-100] * 3)), {}),
    ],
)
def test_other_arguments_give_the_outcome_of_torch(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    for function in ("cross_entropy", "nll_loss"):
        assert_same_outcome(
            lambda: getattr(fast, function)(*arguments, **options),  # noqa: B023
            lambda: getattr(native, function)(*arguments, **options),  # noqa: B023
            function,
            warnings=False,
        )


def gradient_of(loss: Tensor, x: Tensor, factor: float = 1.0, **options: bool) -> Tensor:
    (grad,) = torch.autograd.grad(loss, x, torch.tensor(factor).to(loss), **options)
    return grad


@all_dtypes
def test_the_gradient_from_the_forward_is_right_for_every_backward(dtype: torch.dtype) -> None:
    for shape in ((7, 33), (2, 5, 17)):
        x, target = random_tensor(shape, dtype).requires_grad_(), indices(shape)
        loss = fast.cross_entropy(x, target)
        first = gradient_of(loss, x, retain_graph=True)
        kept = first.clone()
        double = gradient_of(loss, x, 2.0, retain_graph=True)
        again = gradient_of(loss, x, retain_graph=True)
        last = gradient_of(loss, x, 2.0)
        assert_same_bits(first, kept)
        assert_same_bits(again, first)
        assert_same_bits(last, double)
        torch.testing.assert_close(double, 2 * first)
        with pytest.raises(RuntimeError, match="second time"):
            gradient_of(loss, x)


def test_backward_adds_to_grad_and_leaves_other_tensors_alone() -> None:
    x = X.clone().requires_grad_()
    target = torch.tensor([1, 0, 4])
    for _ in range(2):
        (3 * fast.cross_entropy(x, target)).backward()
    fast.cross_entropy(x, target).backward()
    y = X.clone().requires_grad_()
    (7 * native.cross_entropy(y, target)).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_logits_may_be_changed_after_the_loss_as_with_torch() -> None:
    x = X.clone().requires_grad_()
    logits = x * 1
    loss = fast.cross_entropy(logits, torch.tensor([1, 0, 4]))
    logits.add_(1)
    y = X.clone().requires_grad_()
    native.cross_entropy(y, torch.tensor([1, 0, 4])).backward()
    loss.backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_small_gradients_survive_in_float16_until_the_scaler_makes_them_large() -> None:
    x = torch.randn(64, 5000).half().requires_grad_()
    target = indices((64, 5000))
    grads = [
        gradient_of(module.cross_entropy(x, target), x, 60000.0).double()
        for module in (fast, native)
    ]
    y = x.detach().double().requires_grad_()
    exact = gradient_of(native.cross_entropy(y, target), y, 60000.0)
    errors = [(grad - exact).abs().max() for grad in grads]
    assert errors[0] <= 2 * errors[1]
    assert (grads[0] == 0).sum() <= (grads[1] == 0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss"])
def test_autocast_computes_the_loss_in_float32_as_torch_does(
    function: str, dtype: torch.dtype
) -> None:
    x = random_tensor((64, 33), dtype).log_softmax(1).requires_grad_()
    weight = random_tensor((33,), dtype).abs()
    targets = [indices((64, 33))]
    if function == "cross_entropy":
        targets += [probabilities((64, 33), dtype), probabilities((64, 33), torch.float32)]
    for target in targets:
        results = []
        for module in (fast, native):
            with torch.autocast("cpu", torch.bfloat16), fastdl.strict():
                loss = getattr(module, function)(x, target, weight)
            results.append((loss, gradient_of(loss, x)))
        assert results[0][0].dtype == results[1][0].dtype == torch.float32
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("shape", [(3000, 40), (40, 3000), (3, 40, 3001)])
def test_result_is_the_same_for_every_number_of_threads(shape: tuple[int, ...]) -> None:
    x, target = torch.randn(shape, requires_grad=True), indices(shape, -100)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = fast.cross_entropy(x, target)
            results.append((loss.detach(), gradient_of(loss, x)))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert_same_bits(loss, results[0][0])
        assert_same_bits(grad, results[0][1])
