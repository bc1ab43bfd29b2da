"""What only Adagrad does: states from the start, sparse gradients, rates that decay."""

from __future__ import annotations

import torch
from torch import nn

import fastdl
from tests.optimizers import assert_same_training, optimizers, parameters_of, train


def test_states_are_there_from_the_start_and_grow_in_place() -> None:
    fast, native = optimizers("Adagrad", [torch.randn(5)], initial_accumulator_value=0.5)
    (parameter,) = parameters_of(fast)
    total, step = fast.state[parameter]["sum"], fast.state[parameter]["step"]
    assert torch.equal(total, torch.full((5,), 0.5))
    for optimizer in (fast, native):
        train(optimizer, 3, seed=1)
    assert fast.state[parameter]["sum"] is total and fast.state[parameter]["step"] is step
    assert step.item() == 3
    assert_same_training(fast, native)


def test_sparse_gradients_are_native_torchs_and_counted() -> None:
    made = []
    for package in (fastdl.optim, torch.optim):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Linear(3, 2))
        optimizer = package.Adagrad(model.parameters(), lr=0.1, lr_decay=0.2)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([1, 5, 1])).square().sum().backward()
            optimizer.step()
        made.append(optimizer)
    assert_same_training(*made)
    assert fastdl.report().hand_overs == [("Adagrad", "not a plain dense tensor", 3)]


def test_shared_memory_of_the_sums() -> None:
    fast, native = optimizers("Adagrad", [torch.randn(5)])
    for optimizer in (fast, native):
        optimizer.share_memory()
        train(optimizer, 2, seed=1)
    assert fast.state[parameters_of(fast)[0]]["sum"].is_shared()
    assert_same_training(fast, native)
