"""Clipping by the total norm: clip_grad_norm_ as torch's, and inside the optimizers' step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_as_accurate_as_torch, assert_same_bits
from tests.optimizers import (
    ALL_STATES,
    all_dtypes,
    all_optimizers,
    assert_same_training,
    optimizers,
    parameters_of,
    set_gradients,
)
from tests.outcome import assert_same_outcome
from tests.reference_optim import STEPS
from tests.tensors import DTYPES, REDUCED_DTYPES, SIZES, dtype_name, random_tensor

native = nn.utils.clip_grad_norm_
LENGTHS = (0, *SIZES, 4095, 4096, 4097, 16385, 40_001)


def with_gradients(gradients: list[Tensor | None]) -> list[nn.Parameter]:
    """Parameters of their own with copies of these gradients."""
    parameters = []
    for gradient in gradients:
        like = torch.zeros(2) if gradient is None else gradient
        parameters.append(nn.Parameter(torch.zeros_like(like)))
        parameters[-1].grad = None if gradient is None else gradient.clone()
    return parameters


def exact_norm(gradients: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in gradients]))


@pytest.mark.every_isa
@all_dtypes
@pytest.mark.parametrize("part", [0.1, 10.0])
@pytest.mark.usefixtures("threads")
def test_norm_and_gradients_are_as_accurate_as_those_of_torch(
    dtype: torch.dtype, part: float
) -> None:
    gradients = [random_tensor((length,), dtype) for length in LENGTHS]
    norm = exact_norm(gradients)
    max_norm = part * norm.item()
    ours, theirs = (with_gradients(gradients) for _ in range(2))
    with fastdl.strict():
        got = fastdl.optim.clip_grad_norm_(ours, max_norm)
    expected = native(theirs, max_norm)
    assert (got.dtype, got.shape, got.device) == (expected.dtype, (), expected.device)
    rounding = max(0.51 * torch.finfo(dtype).eps, 1e-14)
    torch.testing.assert_close(got.double(), norm, rtol=rounding, atol=0)
    exact = torch.cat([gradient.double() for gradient in gradients])
    exact = exact * min(1.0, max_norm / (norm.item() + 1e-6))
    flat = [torch.cat([p.grad for p in parameters]) for parameters in (ours, theirs)]
    assert_as_accurate_as_torch(*flat, exact, label="gradients")


def test_gradients_of_several_dtypes_have_a_norm_of_the_widest() -> None:
    gradients = [random_tensor((33,), dtype) for dtype in DTYPES]
    for some in (gradients, gradients[2:]):
        ours, theirs = (with_gradients(some) for _ in range(2))
        got, expected = fastdl.optim.clip_grad_norm_(ours, 0.5), native(theirs, 0.5)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got.double(), exact_norm(some), rtol=1e-6, atol=0)
        for one, other in zip(ours, theirs, strict=True):
            tolerance = 2e-2 if one.dtype in REDUCED_DTYPES else 1e-2  # theirs: a 16-bit norm
            torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    gradients = [torch.randn(5000) * scale]
    norm = fastdl.optim.clip_grad_norm_(with_gradients(gradients), 1.0)
    torch.testing.assert_close(norm.double(), exact_norm(gradients), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0])
@pytest.mark.parametrize("max_norm", [0.5, 0.0, -1.0, float("inf"), float("nan"), 2])
@pytest.mark.parametrize("error_if_nonfinite", [False, True])
def test_special_values_are_treated_like_torch(
    value: float, max_norm: float, error_if_nonfinite: bool
) -> None:
    gradients = [torch.full((3,), value), torch.zeros(3) if value == 0 else torch.randn(5)]

    def use(clip: Any) -> list[Tensor]:
        parameters = with_gradients(gradients)
        norm = clip(parameters, max_norm, error_if_nonfinite=error_if_nonfinite)
        return [norm, *(parameter.grad for parameter in parameters)]

    outcome = assert_same_outcome(lambda: use(fastdl.optim.clip_grad_norm_), lambda: use(native))
    assert (outcome.error is not None) == (error_if_nonfinite and value != 0)


def layouts() -> Iterator[tuple[str, list[Tensor | None]]]:
    dense = torch.randn(2, 3, 4, 5)
    yield "channels last", [dense.to(memory_format=torch.channels_last), torch.randn(7)]
    yield "transposed", [torch.randn(5, 7).t()]
    yield "with None", [None, torch.randn(7)]
    yield "empty", [torch.randn(0, 3)]
    yield "scalar", [torch.randn(())]
    yield "complex", [torch.randn(5, dtype=torch.complex64), torch.randn(3)]
    yield "nothing", []
    yield "only None", [None]


@pytest.mark.parametrize("gradients", [g for _, g in layouts()], ids=[n for n, _ in layouts()])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_type": 1.0},
        {"norm_type": float("inf")},
        {"norm_type": "inf"},
        {"norm_type": 2},
        {"norm_type": 0.5, "foreach": True},
        {"foreach": False},
        {"foreach": True},
        {"error_if_nonfinite": True},
        {"norm_type": "wide"},
        {"max_norm": "much"},
        {"max_norm": torch.tensor(0.5)},
    ],
    ids=str,
)
def test_every_kind_of_gradients_and_options(
    gradients: list[Tensor | None], options: dict[str, Any]
) -> None:
    def use(clip: Any) -> list[Tensor | None]:
        parameters = with_gradients(gradients)
        norm = clip(parameters, **{"max_norm": 0.7, **options})
        return [norm, *(parameter.grad for parameter in parameters if parameter.grad is not None)]

    assert_same_outcome(lambda: use(fastdl.optim.clip_grad_norm_), lambda: use(native))


def test_one_tensor_and_generators_are_taken() -> None:
    for make in (
        lambda p: p[0],
        lambda p: (each for each in p),
        lambda p: iter(p),
        lambda p: (each for each in p[:0]),
        lambda p: 3,
        lambda p: ["x"],
    ):

        def use(clip: Any, make: Any = make) -> list[Tensor | None]:
            parameters = with_gradients([torch.ones(3), torch.ones(4)])
            return [clip(make(parameters), 0.5), *(p.grad for p in parameters)]

        assert_same_outcome(lambda: use(fastdl.optim.clip_grad_norm_), lambda: use(native))


def test_gradients_that_share_memory_are_handed_over() -> None:
    shared = torch.ones(8)
    for grads in ([shared[:5], shared[3:]], [shared, shared], [torch.ones(1).expand(8)] * 2):

        def use(clip: Any, grads: Any = grads) -> Tensor:
            copies = [torch.ones(8)[:5], torch.ones(8)[3:]] if grads[0].numel() == 5 else grads
            parameters = [nn.Parameter(torch.zeros(g.shape)) for g in copies]
            for parameter, grad in zip(parameters, copies, strict=True):
                parameter.grad = grad
            return clip(parameters, 100.0)

        assert_same_outcome(lambda: use(fastdl.optim.clip_grad_norm_), lambda: use(native))
        (first, second) = with_gradients([torch.ones(3), torch.ones(3)])
        second.grad = first.grad
        with fastdl.strict(), pytest.raises(RuntimeError, match="share memory"):
            fastdl.optim.clip_grad_norm_([first, second], 0.5)


def test_the_norm_has_the_same_bits_for_any_number_of_threads() -> None:
    gradient = torch.randn(300_007)
    norms = []
    for count in (1, 2, 3, 3):
        torch.set_num_threads(count)
        norms.append(fastdl.optim.clip_grad_norm_(with_gradients([gradient]), 0.5))
    for norm in norms[1:]:
        assert_same_bits(norm, norms[0])


def test_autograd_sees_that_gradients_changed() -> None:
    (parameter,) = with_gradients([torch.ones(3)])
    leaf = torch.ones(3, requires_grad=True)
    product = (parameter.grad * leaf).sum()
    fastdl.optim.clip_grad_norm_([parameter], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_compiled_call_gives_the_same_result() -> None:
    torch.compiler.reset()
    gradients = [torch.randn(5), torch.randn(7)]
    ours, theirs = (with_gradients(gradients) for _ in range(2))
    compiled = torch.compile(fastdl.optim.clip_grad_norm_, backend="eager")
    torch.testing.assert_close(compiled(ours, 0.5), native(theirs, 0.5))
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs])


VALUES = [(33, 7), (1,), (4097,), (0, 3), (), (20_001,)]


@all_optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("part", [0.1, 10.0])
def test_a_clipping_step_is_a_step_after_clipping(
    name: str, dtype: torch.dtype, part: float
) -> None:
    # With a small eps a gradient that weight decay almost cancels counts as much as any other.
    options = {**ALL_STATES[name], **({} if name == "SGD" else {"eps": 1e-3})}
    values = [random_tensor(shape, dtype) for shape in VALUES]
    fast, other = optimizers(name, values, **options)
    for _ in range(3):
        gradients = [random_tensor(shape, dtype) for shape in VALUES]
        max_norm = part * exact_norm(gradients).item()
        for optimizer in (fast, other):
            set_gradients(optimizer, gradients)
        with fastdl.strict():
            fast.step(max_norm=max_norm)
        norm = native(parameters_of(other), max_norm)
        other.step()
        torch.testing.assert_close(fast.grad_norm, norm)
        for parameter, gradient in zip(parameters_of(fast), gradients, strict=True):
            assert_same_bits(parameter.grad, gradient)
    assert_same_training(fast, other)


@all_optimizers
@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_a_16_bit_clipping_step_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    value, gradient = random_tensor((4099,), dtype), random_tensor((4099,), dtype)
    (parameter,) = with_gradients([gradient])
    parameter.data.copy_(value)
    options = {**ALL_STATES[name], "lr": 1e-2}
    optimizer = getattr(fastdl.optim, name)([parameter], **options)
    optimizer.step(max_norm=1.0)
    clipped = gradient.double() / (exact_norm([gradient]) + 1e-6)
    exact, _ = STEPS[name](value, clipped, {}, **options)
    half_unit = 0.502 * torch.finfo(dtype).eps * exact.abs()
    assert ((parameter - exact).abs() <= half_unit + 1e-6).all()


@all_optimizers
def test_the_norm_is_over_all_groups(name: str) -> None:
    made = []
    for package in (fastdl.optim, torch.optim):
        parameters = with_gradients([torch.arange(1.0, 5), torch.ones(7), torch.ones(3) * 2])
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}]
        made.append(getattr(package, name)(groups, lr=0.1, **ALL_STATES[name]))
    made[0].step(max_norm=0.25)
    norm = native(parameters_of(made[1]), 0.25)
    made[1].step()
    assert_same_training(*made)
    torch.testing.assert_close(made[0].grad_norm, norm)


@all_optimizers
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_clips_unscaled_gradients(name: str, unscale: bool) -> None:
    device = torch.get_default_device().type
    fast, other = optimizers(name, [torch.randn(7, 5), torch.randn(33)], **ALL_STATES[name])
    for step in range(3):
        gradients = [torch.randn(7, 5) * 64, torch.randn(33) * 64]
        if step == 1:
            gradients[0][0, 0] = float("inf")
        norms = []
        for optimizer in (fast, other):
            scaler = torch.amp.GradScaler(device, init_scale=64.0)
            scaler.scale(torch.ones(()))
            set_gradients(optimizer, gradients)
            if optimizer is other or unscale:
                scaler.unscale_(optimizer)
            if optimizer is fast:
                scaler.step(optimizer, max_norm=0.3)
                norms.append(fast.grad_norm)
            else:
                norms.append(native(parameters_of(optimizer), 0.3))
                scaler.step(optimizer)
            scaler.update()
        torch.testing.assert_close(*norms)
    assert_same_training(fast, other)


@all_optimizers
def test_tensors_that_no_kernel_covers_are_clipped_too(name: str) -> None:
    made = []
    complex_value = torch.randn(4, dtype=torch.complex64)
    gradients = [torch.randn(4, dtype=torch.complex64), torch.randn(5), torch.randn(3)]
    for package in (fastdl.optim, torch.optim):
        parameters = [
            nn.Parameter(t.clone()) for t in (complex_value, torch.ones(5), torch.ones(3))
        ]
        optimizer = getattr(package, name)(parameters, lr=1e-2, **ALL_STATES[name])
        for _ in range(2):
            set_gradients(optimizer, gradients)
            if package is fastdl.optim:
                optimizer.step(max_norm=0.5)
            else:
                native(parameters, 0.5)
                optimizer.step()
        made.append(optimizer)
    assert_same_training(*made)
    counts = {op: count for op, _, count in fastdl.report().hand_overs}
    assert counts == {"clip_grad_norm_": 2, name: 2}
    for parameter, gradient in zip(parameters_of(made[0]), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_step_without_max_norm_does_not_clip() -> None:
    fast, other = optimizers("SGD", [torch.ones(3)])
    for optimizer in (fast, other):
        set_gradients(optimizer, [torch.full((3,), 100.0)])
        optimizer.step()
    assert_same_training(fast, other)
    assert fast.grad_norm is None and "grad_norm" not in fast.state_dict()


def test_max_norm_with_closures_schedulers_and_hooks() -> None:
    fast, _ = optimizers("AdamW", [torch.ones(3)])
    schedule = torch.optim.lr_scheduler.StepLR(fast, 1)
    seen = []
    fast.register_step_pre_hook(lambda _, __, kwargs: seen.append(kwargs))

    def closure() -> Tensor:
        fast.zero_grad()
        loss = parameters_of(fast)[0].square().sum()
        loss.backward()
        return loss

    assert fast.step(closure, max_norm=0.5).item() == 3.0
    schedule.step()
    torch.testing.assert_close(fast.grad_norm, torch.tensor(12.0).sqrt())
    assert seen == [{"max_norm": 0.5}]


def test_max_norm_of_a_differentiable_step_is_an_error() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = fastdl.optim.SGD([parameter], differentiable=True)
    with pytest.raises(ValueError, match=r"max_norm=0.5 cannot be used with differentiable=True"):
        optimizer.step(max_norm=0.5)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_compiled_clipping_step_gives_the_same_result(name: str) -> None:
    torch.compiler.reset()
    fast, other = optimizers(name, [torch.linspace(-1, 1, 5), torch.ones(3, 2)])
    step = torch.compile(fast.step, backend="eager")
    for _ in range(2):
        gradients = [torch.randn(5), torch.randn(3, 2)]
        for optimizer in (fast, other):
            set_gradients(optimizer, gradients)
        step(max_norm=0.5)
        native(parameters_of(other), 0.5)
        other.step()
    assert_same_training(fast, other)
