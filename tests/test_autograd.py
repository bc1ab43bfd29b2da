"""What autograd promises, for every function: second derivatives, modes, saved tensors, hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastdl
from tests import reference
from tests.cases import CASES, FunctionCase, all_cases, copies
from tests.compare import assert_as_accurate_as_torch, assert_same_bits, assert_same_metadata
from tests.outcome import first_line, outcome_of
from tests.tensors import DTYPES, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def gradients(call: Callable[..., Tensor], leaves: list[Tensor], **options: bool) -> list[Tensor]:
    """The gradients of the sum of sin(output): different for every element, and bounded."""
    return list(torch.autograd.grad(call(*leaves).sin().sum(), leaves, **options))


@all_cases
def test_gradients_are_those_of_finite_differences(case: FunctionCase) -> None:
    assert gradcheck(case.fast, case.leaves(torch.float64), fast_mode=True)


@all_cases
def test_second_derivatives_are_those_of_finite_differences(case: FunctionCase) -> None:
    assert gradgradcheck(case.fast, case.leaves(torch.float64), fast_mode=True)


@all_cases
@all_dtypes
def test_create_graph_gives_second_derivatives_as_accurate_as_torch(
    case: FunctionCase, dtype: torch.dtype
) -> None:
    tensors = case.tensors(dtype)
    results = []
    for module in (fastdl.functional, torch.nn.functional, reference):
        leaves = copies([t.double() for t in tensors] if module is reference else tensors)
        for leaf in leaves:
            leaf.requires_grad_()
        first = gradients(lambda *t, m=module: case.call(m, *t), leaves, create_graph=True)
        assert all(grad.requires_grad for grad in first)
        # Bounded whatever the first derivatives are, so that 16 bits do not overflow.
        wanted = outcome_of(lambda g=first, t=leaves: torch.autograd.grad(g[0].sin().mean(), t))
        results.append([*first, *(wanted.value or [None] * len(leaves))])
    for number, (fast, native, exact) in enumerate(zip(*results, strict=True)):
        # torch itself cannot differentiate layer_norm twice with a bias and no weight.
        native = exact.to(dtype) if native is None else native
        assert_as_accurate_as_torch(fast, native, exact, gradient=True, label=str(number))


@all_cases
def test_gradient_with_create_graph_is_the_gradient_without(case: FunctionCase) -> None:
    leaves = case.leaves(torch.float64)
    with_graph = gradients(case.fast, leaves, create_graph=True)
    torch.testing.assert_close([grad.detach() for grad in with_graph], gradients(case.fast, leaves))


@all_cases
def test_third_derivative_is_that_of_the_formula(case: FunctionCase) -> None:
    # Not torch's, whose third derivative of layer_norm is wrong.
    leaves = case.leaves(torch.float64)
    results = []
    for module in (fastdl.functional, reference):
        grads = gradients(lambda *t, m=module: case.call(m, *t), leaves, create_graph=True)
        grads = torch.autograd.grad(grads[0].square().sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(grads[0].square().sum(), leaves[0]))
    torch.testing.assert_close(*results)


@all_cases
@all_dtypes
@pytest.mark.usefixtures("threads")
def test_two_runs_give_the_same_bits(case: FunctionCase, dtype: torch.dtype) -> None:
    larger = random_tensor((40, *case.shape), dtype)
    leaves = [larger.requires_grad_(), *case.leaves(dtype)[1:]]
    first, second = ([case.fast(*leaves), *gradients(case.fast, leaves)] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert_same_bits(one, other)


@all_cases
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_output_is_attached_exactly_when_that_of_torch_is(
    case: FunctionCase, mode: Callable[[], torch.no_grad], requires_grad: bool
) -> None:
    tensors = [tensor.requires_grad_(requires_grad) for tensor in case.tensors()]
    with mode(), fastdl.strict():
        fast = case.fast(*tensors)
    with mode():
        native = case.native(*tensors)
    assert_same_metadata(fast, native)
    assert (fast.grad_fn is None) == (native.grad_fn is None)


@all_cases
def test_inference_tensors_are_accepted_and_cannot_be_saved(case: FunctionCase) -> None:
    with torch.inference_mode():
        tensors = case.tensors()
    torch.testing.assert_close(case.fast(*tensors), case.native(*tensors))
    if len(tensors) > 1:
        weight = torch.ones_like(tensors[1]).requires_grad_()
        calls = [case.fast, case.native]
        fast, native = (outcome_of(lambda c=c: c(tensors[0], weight, *tensors[2:])) for c in calls)
        assert type(fast.error) is type(native.error)
        assert fast.error is None or first_line(fast.error) == first_line(native.error)


def saves_more_than_torch(case: FunctionCase) -> bool:
    """One kernel saves its inputs and output, where torch may save what is between several ops."""
    return case.name.startswith("scaled_dot_product_attention")


@pytest.mark.parametrize(
    ("case", "changed"),
    [(case, i) for case in CASES for i in range(len(case.parameter_shapes) + 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_in_place_change_of_what_backward_needs_raises_like_torch(
    case: FunctionCase, changed: int
) -> None:
    leaves = case.leaves()
    right = torch.autograd.grad(case.fast(*leaves).sum(), leaves)
    outcomes = []
    for call in (case.fast, case.native):
        own = copies(leaves)
        output = call(*own)
        with torch.no_grad():
            [output, *own][changed].mul_(2)
        outcomes.append(outcome_of(lambda y=output, t=own: torch.autograd.grad(y.sum(), t)))
    fast, native = outcomes
    if fast.error is None:
        # Not needed by fastdl: then the change has no effect either.
        torch.testing.assert_close(fast.value, right)
    else:
        if not saves_more_than_torch(case):
            assert type(fast.error) is type(native.error), f"torch {native.describe()}"
        assert str(fast.error).startswith(
            "one of the variables needed for gradient computation has been modified by an inplace"
        )


@all_cases
def test_in_place_operation_on_the_output_is_differentiated(case: FunctionCase) -> None:
    # The output itself is not needed by the backward of a norm; of a softmax it is, and an error.
    leaves = case.leaves()
    results = []
    for call in (case.fast, case.native):
        output = call(*leaves)
        output.add_(1).mul_(3)
        results.append(outcome_of(lambda y=output: torch.autograd.grad(y.sum(), leaves)))
    fast, native = results
    if saves_more_than_torch(case):
        return
    assert type(fast.error) is type(native.error), f"{fast.describe()}, torch {native.describe()}"
    if native.error is None:
        torch.testing.assert_close(fast.value, native.value, atol=1e-4, rtol=1e-4)


@all_cases
def test_second_backward_needs_retain_graph_like_torch(case: FunctionCase) -> None:
    leaves = case.leaves()
    for call in (case.fast, case.native):
        output = call(*leaves).sum()
        output.backward(retain_graph=True)
        output.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            output.backward()
    fast, native = copies(leaves), copies(leaves)
    for call, own in ((case.fast, fast), (case.native, native)):
        for _ in range(2):
            call(*own).square().sum().backward()
    for ours, theirs in zip(fast, native, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@all_cases
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_gives_the_same_gradients(case: FunctionCase, use_reentrant: bool) -> None:
    leaves = case.leaves()
    plain = gradients(case.fast, leaves)
    own = copies(leaves)
    checkpoint(case.fast, *own, use_reentrant=use_reentrant).sin().sum().backward()
    for leaf, grad in zip(own, plain, strict=True):
        assert_same_bits(leaf.grad, grad)


@all_cases
def test_saved_tensors_go_through_hooks(case: FunctionCase) -> None:
    leaves = case.leaves()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), fastdl.strict():
        output = case.fast(*leaves)
    assert packed or case.name in ("avg_pool1d", "avg_pool2d")  # their backward needs no tensor
    output.sum().backward()


@all_cases
def test_nothing_is_saved_for_a_gradient_that_nobody_wants(case: FunctionCase) -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        case.fast(*case.tensors())
    assert not saved


@all_cases
def test_batched_gradients_are_those_of_torch(case: FunctionCase) -> None:
    leaves = case.leaves()
    grads = torch.randn(4, *case.shape)
    results = [
        torch.autograd.grad(call(*leaves), leaves, grads, is_grads_batched=True)
        for call in (case.fast, case.native)
    ]
    torch.testing.assert_close(*results)


@all_cases
def test_forward_mode_differentiation_is_that_of_torch(case: FunctionCase) -> None:
    primals, tangents = case.tensors(), case.tensors()
    results = []
    for call in (case.fast, case.native):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(primals, tangents, strict=True)]
            results.append(forward_ad.unpack_dual(call(*duals)))
    torch.testing.assert_close(tuple(results[0]), tuple(results[1]))


@all_cases
@pytest.mark.parametrize("context", [nullcontext, torch.autograd.detect_anomaly], ids=str)
def test_undefined_and_missing_gradients_are_no_error(
    case: FunctionCase, context: Callable[[], nullcontext[None]]
) -> None:
    leaves = case.leaves()
    with context():
        output, other = case.fast(*leaves), leaves[0] * 2
        torch.stack([other.sum(), output.detach().sum()]).sum().backward()
        assert_same_bits(leaves[0].grad, torch.full_like(leaves[0], 2))
        grads = torch.autograd.grad(output, leaves, torch.zeros_like(output))
    assert all((grad == 0).all() for grad in grads)
