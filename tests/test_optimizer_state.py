"""Optimizers: states that are saved, loaded, copied, and steps that GradScaler skips."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_same_bits
from tests.optimizers import (
    ALL_STATES,
    NAMES,
    all_optimizers,
    assert_same_training,
    optimizers,
    parameters_of,
    set_gradients,
    train,
)

all_directions = pytest.mark.parametrize(
    "saver", [0, 1], ids=["fastdl to torch", "torch to fastdl"]
)


@all_optimizers
@all_directions
@pytest.mark.parametrize("all_states", [False, True])
def test_training_goes_on_after_a_state_dict_changes_sides(
    name: str, saver: int, all_states: bool
) -> None:
    values = [torch.randn(7, 5), torch.randn(33), torch.randn(()), torch.randn(0)]
    options = ALL_STATES[name] if all_states else {"weight_decay": 0.1}
    pair = optimizers(name, values, **options)
    for optimizer in pair:
        train(optimizer, 3, seed=1)
    source, loader = pair[saver], pair[1 - saver]
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    loader.load_state_dict(torch.load(buffer, weights_only=True))
    for ours, theirs in zip(parameters_of(loader), parameters_of(source), strict=True):
        ours.data.copy_(theirs)
    for optimizer in pair:
        train(optimizer, 4, seed=2)
    assert_same_training(*pair)
    assert pair[0].state_dict().keys() == pair[1].state_dict().keys()


@all_optimizers
def test_state_dicts_have_the_same_keys_types_and_groups(name: str) -> None:
    pair = optimizers(name, [torch.randn(7, 5)], **ALL_STATES[name])
    for optimizer in pair:
        train(optimizer, 2, seed=1)
    fast, native = (optimizer.state_dict() for optimizer in pair)
    assert fast["param_groups"] == native["param_groups"]
    assert fast["state"].keys() == native["state"].keys()
    for key, value in native["state"][0].items():
        assert type(fast["state"][0][key]) is type(value)
        assert fast["state"][0][key].dtype == value.dtype


@all_optimizers
def test_states_from_before_steps_were_tensors_are_accepted(name: str) -> None:
    pair = optimizers(name, [torch.randn(5)], **ALL_STATES[name])
    for optimizer in pair:
        train(optimizer, 2, seed=1)
        state = optimizer.state_dict()
        if "step" in state["state"][0]:
            state["state"][0]["step"] = 2.0
        for group in state["param_groups"]:
            for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):
                group.pop(key, None)
        optimizer.load_state_dict(state)
        train(optimizer, 2, seed=2)
    assert_same_training(*pair)


@all_optimizers
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_trains_on_like_the_original(
    name: str, duplicate: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
) -> None:
    optimizer, _ = optimizers(name, [torch.randn(7, 5), torch.randn(33)], **ALL_STATES[name])
    train(optimizer, 3, seed=1)
    other = duplicate(optimizer)
    assert type(other) is getattr(fastdl.optim, name)
    for one in (optimizer, other):
        train(one, 3, seed=2)
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(other), strict=True):
        assert ours is not theirs
        assert_same_bits(ours, theirs)


@all_optimizers
def test_classes_are_torchs_with_another_step(name: str) -> None:
    cls, native = getattr(fastdl.optim, name), getattr(torch.optim, name)
    assert issubclass(cls, native) and cls.__name__ == name
    pair = optimizers(name, [torch.zeros(3)])
    assert isinstance(pair[0], native)
    assert repr(pair[0]) == repr(pair[1])
    assert pair[0].defaults == pair[1].defaults


def scaled_training(
    optimizer: torch.optim.Optimizer, inf_at: int, steps: int, unscale: bool
) -> list[Any]:
    """Trains with a GradScaler; at step `inf_at` a gradient overflows. What can be seen of it."""
    scaler = torch.amp.GradScaler(
        torch.get_default_device().type, init_scale=1024.0, growth_interval=2
    )
    parameters, seen = parameters_of(optimizer), []
    for step in range(steps):
        optimizer.zero_grad()
        # Gradients that depend on the step alone: rounding errors are not amplified.
        loss = sum(
            (p * torch.linspace(1, 2 + step, p.numel()).view(p.shape)).sum() for p in parameters
        )
        assert isinstance(loss, Tensor)
        scaler.scale(loss).backward()
        if step == inf_at:
            parameters[0].grad[0] = float("inf")
        before = [p.detach().clone() for p in parameters]
        states = copy.deepcopy([optimizer.state[p] for p in parameters])
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        if step == inf_at:
            for parameter, value, state in zip(parameters, before, states, strict=True):
                assert_same_bits(parameter, value)
                assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in state.items())
        else:
            seen += [parameter.grad.clone() for parameter in parameters]
        scaler.update()
        seen += [scaler.get_scale(), *(parameter.detach().clone() for parameter in parameters)]
        assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    return seen


@all_optimizers
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("inf_at", [0, 2, 99])
@pytest.mark.parametrize("options", ["default", "foreach", "all states"])
def test_grad_scaler_trains_and_skips_as_with_torch(
    name: str, unscale: bool, inf_at: int, options: str
) -> None:
    chosen = {"default": {}, "foreach": {"foreach": True}, "all states": ALL_STATES[name]}[options]
    pair = optimizers(name, [torch.randn(7, 5), torch.randn(4099)], **chosen)
    results = [scaled_training(optimizer, inf_at, 5, unscale) for optimizer in pair]
    assert len(results[0]) == len(results[1])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_grad_scaler_of_a_fused_optimizer(name: str) -> None:
    pair = optimizers(name, [torch.randn(7, 5), torch.randn(4099)], fused=True)
    results = [scaled_training(optimizer, 2, 5, False) for optimizer in pair]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@all_optimizers
def test_a_step_with_grad_scaler_is_computed_by_the_kernel(name: str) -> None:
    optimizer, _ = optimizers(name, [torch.randn(7, 5)], **ALL_STATES[name])
    with fastdl.strict():
        scaled_training(optimizer, 1, 3, unscale=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Adagrad"])  # state from start
def test_grad_scaler_with_tensors_that_no_kernel_covers(name: str) -> None:
    pair = optimizers(name, [torch.randn(7, 5), torch.randn(6, 4)[:, ::2], torch.randn(9)])
    for optimizer in pair:
        parameters_of(optimizer)[1].data = torch.randn(12, generator=generator()).view(3, 4)[:, ::2]
    results = [scaled_training(optimizer, 1, 4, unscale=False) for optimizer in pair]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def generator() -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(5)


@all_optimizers
def test_learning_rate_schedulers_work(name: str) -> None:
    cycles = name != "Adagrad"  # it has no momentum
    pair = optimizers(name, [torch.randn(7, 5)], **{**ALL_STATES[name], "lr": 0.1})
    rates = []
    for optimizer in pair:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=12, cycle_momentum=cycles
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "step() was called before", if a hook were missing
            for seed in range(10):
                train(optimizer, 1, seed)
                scheduler.step()
        rates.append([scheduler.get_last_lr(), optimizer.param_groups[0].get("betas")])
    assert rates[0] == rates[1]
    assert_same_training(*pair)


@all_optimizers
def test_set_gradients_to_none_and_zero(name: str) -> None:
    for set_to_none in (True, False):
        fast, native = optimizers(name, [torch.randn(5), torch.randn(3)], **ALL_STATES[name])
        for optimizer in (fast, native):
            train(optimizer, 1, seed=1)
            optimizer.zero_grad(set_to_none=set_to_none)
            gradients = [parameter.grad for parameter in parameters_of(optimizer)]
            assert all((grad is None) == set_to_none for grad in gradients)
            optimizer.step()
            set_gradients(optimizer, [torch.ones(5), None])
            optimizer.step()
        assert_same_training(fast, native)
