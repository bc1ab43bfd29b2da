"""torch.func transforms, fake and meta tensors: what no kernel covers is computed by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl
from tests.cases import FunctionCase, all_cases
from tests.compare import assert_same_metadata
from tests.outcome import assert_alike, assert_same_outcome, outcome_of


def same(case: FunctionCase, use: Callable[..., Any], *arguments: Any) -> None:
    """use(function, *arguments) gives the same with fastdl's function as with torch's."""
    assert_alike(use(case.fast, *arguments), use(case.native, *arguments), case.name)


@all_cases
@pytest.mark.parametrize("dims", [(0, 0), (1, 1), (-1, 1)], ids=str)
def test_vmap(case: FunctionCase, dims: tuple[int, int]) -> None:
    x, *parameters = case.tensors()
    batched = torch.stack([x, x + 1, x * 2], dim=dims[0])
    in_dims = (dims[0], *(None for _ in parameters))
    same(case, lambda f: func.vmap(f, in_dims, dims[1])(batched, *parameters))


@all_cases
def test_vmap_over_the_parameters(case: FunctionCase) -> None:
    x, *parameters = case.tensors()
    stacked = [torch.stack([p, p * 2]) for p in parameters]
    same(case, lambda f: func.vmap(f)(torch.stack([x, x + 1]), *stacked))


@all_cases
def test_nested_vmap(case: FunctionCase) -> None:
    x, *parameters = case.tensors()
    batched = torch.randn(2, 3, *x.shape)
    none = tuple(None for _ in parameters)
    same(case, lambda f: func.vmap(func.vmap(f, (0, *none)), (0, *none))(batched, *parameters))


@all_cases
def test_func_grad_and_vjp(case: FunctionCase) -> None:
    tensors = case.tensors()
    argnums = tuple(range(len(tensors)))
    same(case, lambda f: func.grad(lambda *t: f(*t).sin().sum(), argnums)(*tensors))
    same(case, lambda f: func.vjp(f, *tensors)[1](torch.ones(case.shape)))


@all_cases
def test_per_sample_gradients(case: FunctionCase) -> None:
    x, *parameters = case.tensors()
    batched = torch.stack([x, x + 1, x * 2])
    in_dims = (0, *(None for _ in parameters))
    same(
        case,
        lambda f: func.vmap(func.grad(lambda *t: f(*t).sin().sum()), in_dims)(batched, *parameters),
    )


@all_cases
def test_func_jvp(case: FunctionCase) -> None:
    primals, tangents = tuple(case.tensors()), tuple(case.tensors())
    same(case, lambda f: func.jvp(f, primals, tangents))
    same(case, lambda f: func.linearize(f, *primals)[1](*tangents))


@all_cases
def test_jacobians_and_hessian(case: FunctionCase) -> None:
    x, *parameters = (t[..., :19] for t in case.tensors(torch.float64))
    same(case, lambda f: func.jacrev(f)(x, *parameters))
    same(case, lambda f: func.jacfwd(f)(x, *parameters))
    same(case, lambda f: torch.autograd.functional.jacobian(f, (x, *parameters)))
    same(case, lambda f: func.hessian(lambda *t: f(*t).sin().sum())(x, *parameters))


@all_cases
def test_functionalize(case: FunctionCase) -> None:
    tensors = case.tensors()
    same(case, lambda f: func.functionalize(f)(*tensors))


@all_cases
def test_functional_call_of_transformed_modules(case: FunctionCase) -> None:
    class Model(torch.nn.Module):
        def __init__(self, function: Callable[..., Tensor]) -> None:
            super().__init__()
            self.function = function
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, *tensors: Tensor) -> Tensor:
            return self.function(tensors[0] * self.scale, *tensors[1:])

    tensors = case.tensors()
    values = {"scale": torch.tensor(0.5)}

    def gradient(function: Callable[..., Tensor]) -> dict[str, Tensor]:
        model = Model(function)
        return func.grad(lambda v: func.functional_call(model, v, tuple(tensors)).sin().sum())(
            values
        )

    torch.testing.assert_close(gradient(case.fast), gradient(case.native))


@all_cases
@pytest.mark.parametrize("requires_grad", [False, True])
def test_meta_tensors(case: FunctionCase, requires_grad: bool) -> None:
    tensors = [t.to("meta").requires_grad_(requires_grad) for t in case.tensors()]
    same(case, lambda f: f(*tensors))


@all_cases
@pytest.mark.parametrize("requires_grad", [False, True])
def test_fake_tensors(case: FunctionCase, requires_grad: bool) -> None:
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(t).requires_grad_(requires_grad) for t in case.tensors()]
        fast, native = case.fast(*tensors), case.native(*tensors)
    assert type(fast) is type(native)
    assert_same_metadata(fast, native)
    # The mode is off, the tensors are fake still: not all of torch's own ops take them.
    if outcome_of(lambda: case.native(*tensors)).error is None:
        outside = case.fast(*tensors)
        assert type(outside) is type(native)
        assert_same_metadata(outside, native)


@all_cases
def test_fake_mode_sees_real_tensors_as_torch_does(case: FunctionCase) -> None:
    tensors = case.tensors()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fast, native = case.fast(*tensors), case.native(*tensors)
    assert type(fast) is type(native)


@all_cases
def test_negative_conjugate_and_zero_tensors(case: FunctionCase) -> None:
    x, *parameters = case.tensors()
    same(case, lambda f: f(torch._neg_view(x), *parameters))
    same(case, lambda f: f(torch.complex(x, x).conj().imag, *parameters))
    zeros = torch._efficientzerotensor(x.shape, device=x.device)
    assert_same_outcome(  # torch's own group_norm fails for such a tensor
        lambda: case.fast(zeros, *parameters), lambda: case.native(zeros, *parameters)
    )


def test_a_transform_is_a_counted_hand_over() -> None:
    func.vmap(lambda x: fastdl.functional.softmax(x, dim=0))(torch.randn(3, 4))
    ((op, reason, count),) = fastdl.report().hand_overs
    assert op == "softmax" and "transform" in reason and count == 1
