"""What only SGD does: momentum buffers that come to be in the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastdl
from tests.optimizers import assert_same_training, optimizers, parameters_of, set_gradients, train

MOMENTUM = {"momentum": 0.9, "dampening": 0.3}


def test_without_momentum_there_is_no_state() -> None:
    fast, native = optimizers("SGD", [torch.randn(5), torch.randn(3)])
    for optimizer in (fast, native):
        train(optimizer, 2, seed=1)
    assert fast.state_dict() == native.state_dict()
    assert_same_training(fast, native)


def test_the_first_buffer_is_the_gradient_without_dampening() -> None:
    fast, _ = optimizers("SGD", [torch.ones(5)], **MOMENTUM)
    gradient = torch.linspace(-1, 1, 5)
    set_gradients(fast, [gradient])
    with fastdl.strict():
        fast.step()
    (parameter,) = parameters_of(fast)
    assert torch.equal(fast.state[parameter]["momentum_buffer"], gradient)


@pytest.mark.parametrize("nesterov", [False, True])
def test_parameters_whose_first_gradient_comes_later(nesterov: bool) -> None:
    options = {"momentum": 0.9, "nesterov": True} if nesterov else MOMENTUM
    fast, native = optimizers("SGD", [torch.randn(5), torch.randn(4), torch.randn(3)], **options)
    gradients = [[torch.randn(5), None, None], [torch.randn(5), torch.randn(4), torch.randn(3)]]
    for step in (0, 1, 1):
        for optimizer in (fast, native):
            set_gradients(optimizer, gradients[step])
            with fastdl.strict():
                optimizer.step()
    assert_same_training(fast, native)


def test_buffers_of_tensors_that_no_kernel_covers() -> None:
    values = [torch.randn(5), torch.randn(4, dtype=torch.complex64), torch.randn(3)]
    fast, native = optimizers("SGD", values, **MOMENTUM)
    for first in (None, torch.randn(5)):
        for optimizer in (fast, native):
            gradients = [first, torch.ones(4, dtype=torch.complex64), torch.ones(3)]
            set_gradients(optimizer, gradients)
            optimizer.step()
    assert_same_training(fast, native)
    assert fastdl.report().hand_overs == [("SGD", "no kernel for this dtype", 2)]


def test_an_overflow_in_the_first_step_leaves_no_buffer() -> None:
    fast, native = optimizers("SGD", [torch.ones(5)], **MOMENTUM)
    device = torch.get_default_device().type
    for optimizer in (fast, native):
        scaler = torch.amp.GradScaler(device, init_scale=4.0)
        for gradient in (torch.full((5,), float("inf")), torch.ones(5), torch.ones(5)):
            scaler.scale(torch.ones(()))
            set_gradients(optimizer, [gradient])
            scaler.step(optimizer)
            state = optimizer.state[parameters_of(optimizer)[0]]
            has_buffer = state.get("momentum_buffer") is not None
            assert has_buffer == bool(gradient.isfinite().all())
            scaler.update()
    assert_same_training(fast, native)


def test_a_dense_parameter_beside_one_with_sparse_gradient() -> None:
    made = []
    for package in (fastdl.optim, torch.optim):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Linear(3, 2))
        optimizer = package.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([1, 5, 1])).square().sum().backward()
            optimizer.step()
        made.append(optimizer)
    assert_same_training(*made)
    assert fastdl.report().hand_overs == [("SGD", "not a plain dense tensor", 3)]
