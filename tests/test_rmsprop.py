"""What only RMSprop does: which states there are, and that a capturable step needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdl
from tests.optimizers import assert_same_training, both, optimizers, parameters_of, train


@pytest.mark.parametrize(
    ("options", "states"),
    [
        ({}, {"step", "square_avg"}),
        ({"momentum": 0.9}, {"step", "square_avg", "momentum_buffer"}),
        ({"centered": True}, {"step", "square_avg", "grad_avg"}),
        (
            {"centered": True, "momentum": 0.9},
            {"step", "square_avg", "grad_avg", "momentum_buffer"},
        ),
    ],
    ids=["plain", "momentum", "centered", "both"],
)
def test_states_are_those_of_the_options(options: dict[str, Any], states: set[str]) -> None:
    fast, native = optimizers("RMSprop", [torch.randn(33)], **options)
    for optimizer in (fast, native):
        train(optimizer, 4, seed=1)
    assert set(fast.state[parameters_of(fast)[0]]) == states
    assert_same_training(fast, native)


@pytest.mark.cpu_only("a GPU can be captured")
def test_a_capturable_step_without_a_gpu_raises_what_torch_raises() -> None:
    def use(cls: Any) -> None:
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        cls([parameter], capturable=True).step()

    assert "supported devices" in str(both("RMSprop", use).error)
    assert fastdl.report().hand_overs == [("RMSprop", "capturable=True without a GPU", 1)]


def test_a_constant_gradient_keeps_the_centered_variance_of_torch() -> None:
    pair = optimizers("RMSprop", [torch.ones(7, dtype=torch.float64)], centered=True, alpha=0.5)
    for optimizer in pair:
        for _ in range(5):
            parameters_of(optimizer)[0].grad = torch.full((7,), 3.0, dtype=torch.float64)
            optimizer.step()
    assert_same_training(*pair)
