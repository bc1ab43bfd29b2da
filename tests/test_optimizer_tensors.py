"""Optimizers on tensors of every layout and kind: strided, overlapping, sparse, complex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_same_bits
from tests.optimizers import (
    ALL_STATES,
    all_optimizers,
    assert_same_training,
    both,
    check_steps,
    optimizers,
    parameters_of,
    set_gradients,
    train,
)

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.clone().transpose(0, 1).contiguous().transpose(0, 1),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "sliced": lambda t: torch.cat([t, t], dim=3)[..., : t.shape[3]],
    "stepped": lambda t: torch.stack([t, t], dim=-1)[..., 0],
}


@all_optimizers
@pytest.mark.parametrize("all_states", [False, True])
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_parameter_and_gradient(
    name: str, layout: str, grad_layout: str, all_states: bool
) -> None:
    made = []
    value = torch.randn(4, 6, 5, 3)
    gradients = [torch.randn(4, 6, 5, 3) for _ in range(3)]
    for package in (fastdl.optim, torch.optim):
        parameter = LAYOUTS[layout](value).requires_grad_()
        optimizer = getattr(package, name)([parameter], **(ALL_STATES[name] if all_states else {}))
        for gradient in gradients:
            parameter.grad = LAYOUTS[grad_layout](gradient)
            optimizer.step()
        made.append(optimizer)
    assert_same_training(*made)
    ours, theirs = (parameters_of(optimizer)[0] for optimizer in made)
    assert ours.stride() == theirs.stride()
    for key, value in made[1].state[theirs].items():
        assert made[0].state[ours][key].stride() == value.stride()


@all_optimizers
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3).expand(4, 3),
        lambda: torch.arange(6.0).as_strided((3, 3), (1, 1)),
        lambda: torch.ones(1).expand(5),
    ],
    ids=["expanded", "overlapping", "one element"],
)
def test_parameter_that_overlaps_itself(name: str, make: Callable[[], Tensor]) -> None:
    def use(cls: Any) -> list[Tensor]:
        parameter = make().requires_grad_()
        parameter.grad = torch.ones(parameter.shape)
        cls([parameter]).step()
        return [parameter.detach().clone()]

    both(name, use)


@all_optimizers
def test_views_of_one_buffer_as_parameters(name: str) -> None:
    def use(cls: Any) -> Tensor:
        buffer = torch.linspace(-1, 1, 30)
        parameters = [buffer[:7].requires_grad_(), buffer[7:].requires_grad_()]
        optimizer = cls(parameters, lr=0.1)
        train(optimizer, 3, seed=1)
        return buffer

    assert both(name, use).error is None


@all_optimizers
def test_sparse_gradients_do_what_torch_does(name: str) -> None:
    def use(cls: Any) -> None:
        parameter = nn.Parameter(torch.ones(5, 3))
        parameter.grad = torch.ones(5, 3).to_sparse()
        cls([parameter]).step()

    outcome = both(name, use, warnings=False)  # torch warns once in a process
    assert (outcome.error is None) == (name in ("SGD", "Adagrad"))


@all_optimizers
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("all_states", [False, True])
def test_complex_parameters(name: str, dtype: torch.dtype, all_states: bool) -> None:
    options = ALL_STATES[name] if all_states else {}
    pair = optimizers(name, [torch.randn(5, dtype=dtype), torch.randn(7)], **options)
    for optimizer in pair:
        for seed in range(3):
            torch.manual_seed(seed)
            gradients = [torch.randn_like(p) for p in parameters_of(optimizer)]
            set_gradients(optimizer, gradients)
            optimizer.step()
    assert_same_training(*pair)


@all_optimizers
def test_parameters_without_gradient_stay_as_they_are(name: str) -> None:
    pair = optimizers(name, [torch.randn(5), torch.randn(3), torch.randn(2)], **ALL_STATES[name])
    for optimizer in pair:
        set_gradients(optimizer, [torch.ones(5), None, torch.ones(2)])
        before = parameters_of(optimizer)[1].detach().clone()
        for _ in range(2):
            optimizer.step()
        assert_same_bits(parameters_of(optimizer)[1], before)
        if name != "Adagrad":  # which has its state from the start
            assert len(optimizer.state[parameters_of(optimizer)[1]]) == 0
    assert_same_training(*pair)


@all_optimizers
@pytest.mark.parametrize("all_states", [False, True])
def test_hundreds_of_tensors_in_one_group(name: str, all_states: bool) -> None:
    # More than one launch on a GPU carries in its arguments, empty ones and some of several blocks.
    sizes = [*range(400), *([0] * 7), 5000, *([9] * 400), 0]
    values = [torch.randn(size) for size in sizes]
    check_steps(name, values, 2, **(ALL_STATES[name] if all_states else {}))
