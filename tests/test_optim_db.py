"""Optimizers with the inputs of PyTorch's own database of optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastdl
from tests.optimizers import all_optimizers, assert_same_training, both

pytest.importorskip("expecttest", reason="the database of torch needs expecttest")
from torch.testing._internal.common_optimizers import optim_db

DATABASE = {info.optim_cls.__name__: info for info in optim_db}


@all_optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_input_of_the_optimizer_database(name: str, dtype: torch.dtype) -> None:
    inputs = DATABASE[name].optim_inputs_func(device=torch.get_default_device().type, dtype=dtype)
    assert len(inputs) >= 5
    for input in inputs:
        made = []
        for package in (fastdl.optim, torch.optim):
            torch.manual_seed(3)
            # A centered variance of nearly constant gradients is rounding errors: with a LayerNorm
            # the last bits of its gradients would decide.
            centered = input.kwargs.get("centered", False)
            layer = nn.Tanh() if centered else nn.LayerNorm(7)
            model = nn.Sequential(nn.Linear(5, 7), layer, nn.Linear(7, 1)).to(dtype)
            parameters = list(model.parameters()) if input.params is None else input.params
            optimizer = getattr(package, name)(parameters, **input.kwargs)
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.linspace(-1, 1, 15, dtype=dtype).view(3, 5)).sum().backward()
                optimizer.step()
            made.append(optimizer)
        assert_same_training(*made)


@all_optimizers
def test_every_error_input_of_the_optimizer_database(name: str) -> None:
    device = torch.get_default_device().type
    inputs = DATABASE[name].optim_error_inputs_func(device=device, dtype=torch.float32)
    assert len(inputs) > 3 or device != "cpu"  # few or none for others
    for error in inputs:
        arguments = error.optimizer_error_input

        def use(cls: Any, arguments: Any = arguments) -> None:
            optimizer = cls(arguments.params, **arguments.kwargs)
            optimizer.step()

        outcome = both(name, use)
        raised = [type(outcome.error), *(category for category, _ in outcome.warned)]
        assert error.error_type in raised, arguments
