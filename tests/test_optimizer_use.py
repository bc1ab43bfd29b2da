"""Optimizers as people use them: flags, layouts, hooks, closures, groups, and wrong use."""

from __future__ import annotations

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
    both,
    optimizers,
    parameters_of,
    set_gradients,
    train,
)

INVALID: list[dict[str, Any]] = [
    {"lr": -1.0},
    {"eps": -1.0},
    {"weight_decay": -1.0},
    {"lr": torch.tensor([0.1, 0.2])},
    {"fused": True, "differentiable": True},
    {"fused": True, "foreach": True},
    {"lr": "fast"},
    {"unknown": 1},
]
INVALID_ADAM: list[dict[str, Any]] = [
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, -0.1)},
    {"betas": (0.9,)},
    {"betas": (torch.tensor(0.9), 0.99)},
    {"betas": (torch.tensor([0.9, 0.8]), torch.tensor([0.99, 0.9]))},
    {"lr": torch.tensor(0.1), "foreach": True, "capturable": False},
]
INVALID_OWN: dict[str, list[dict[str, Any]]] = {
    "Adam": INVALID_ADAM,
    "AdamW": INVALID_ADAM,
    "SGD": [
        {"momentum": -1.0},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"momentum": "much"},
    ],
    "Adagrad": [{"lr_decay": -1.0}, {"initial_accumulator_value": -1.0}],
    "RMSprop": [{"alpha": -1.0}, {"momentum": -0.1}, {"capturable": True}],
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in NAMES for options in (*INVALID, *INVALID_OWN[name])],
    ids=str,
)
def test_invalid_options_raise_what_torch_raises(name: str, options: dict[str, Any]) -> None:
    def use(cls: Any) -> None:
        parameter = nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        cls([parameter], **options).step()

    outcome = both(name, use)
    # A capturable step of torch fails only without a GPU.
    assert outcome.error is not None or options.get("capturable")


@all_optimizers
@pytest.mark.parametrize("params", [[], 3, torch.ones(3), ["x"], [{"params": []}, 3]], ids=str)
def test_invalid_parameters_raise_what_torch_raises(name: str, params: Any) -> None:
    both(name, lambda cls: cls(params).state_dict())


@all_optimizers
def test_parameters_that_are_no_leaves_or_twice_there_raise(name: str) -> None:
    leaf = torch.ones(3, requires_grad=True)
    assert both(name, lambda cls: cls([leaf * 2])).error is not None
    assert both(name, lambda cls: cls([{"params": [leaf]}, {"params": [leaf]}])).error is not None


@all_optimizers
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.usefixtures("threads")
def test_a_parameter_twice_in_a_group_is_updated_twice_as_with_torch(name: str) -> None:
    results = []
    for package in (fastdl.optim, torch.optim):
        parameter = nn.Parameter(torch.linspace(-1, 1, 50_000))
        # Not foreach: on a GPU it may update both at once, each from the same old value.
        optimizer = getattr(package, name)(
            [parameter, parameter], foreach=False, **ALL_STATES[name]
        )
        for _ in range(3):
            parameter.grad = torch.linspace(1, 2, 50_000)
            optimizer.step()
        results.append(parameter.detach())
        if name != "SGD":
            assert optimizer.state[parameter]["step"].item() == 6
    torch.testing.assert_close(*results)


FLAGS: list[dict[str, Any]] = [
    {"foreach": True},
    {"foreach": False},
    {"lr": torch.tensor(1e-2, dtype=torch.float64)},
    {"lr": torch.tensor([1e-2])},
    {"lr": 1},
    {"fused": True},
    {"fused": False},
    {"lr": torch.tensor(1e-2), "fused": True},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, flags) for name in NAMES for flags in FLAGS),
        *(
            (name, {"lr": torch.tensor(1e-2), "betas": (torch.tensor(0.9), torch.tensor(0.99))})
            for name in ("Adam", "AdamW")
        ),
        ("SGD", {"weight_decay": torch.tensor(0.1), "momentum": 0.9}),
        ("SGD", {"momentum": True}),
    ],
    ids=str,
)
def test_flags_of_the_user_give_the_results_of_torch(name: str, options: dict[str, Any]) -> None:
    def use(cls: Any) -> list[Tensor]:
        torch.manual_seed(1)
        parameters = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(33))]
        train(cls(parameters, **options), 4, seed=1)
        return [parameter.detach() for parameter in parameters]

    both(name, use)


@all_optimizers
def test_differentiable_steps_can_be_differentiated(name: str) -> None:
    def use(cls: Any) -> Tensor:
        start = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
        parameter = start.clone()
        parameter.grad = (start * start).clone()
        cls([parameter], lr=0.1, differentiable=True).step()
        return torch.autograd.grad(parameter.sum(), start)[0]

    assert both(name, use).error is None


@all_optimizers
def test_closure_is_called_with_gradients_enabled_and_its_loss_returned(name: str) -> None:
    pair = optimizers(name, [torch.linspace(-1, 1, 5)])
    losses = []
    for optimizer in pair:

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = parameters_of(optimizer)[0].square().sum()
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure) for _ in range(3)])
        assert optimizer.step() is None
    torch.testing.assert_close(*losses)
    assert_same_training(*pair)


@all_optimizers
def test_step_hooks_are_called_in_order(name: str) -> None:
    optimizer, _ = optimizers(name, [torch.ones(3)])
    set_gradients(optimizer, [torch.ones(3)])
    calls: list[str] = []
    value = parameters_of(optimizer)[0]
    optimizer.register_step_pre_hook(lambda *_: calls.append(f"before {value[0].item():.2f}"))
    optimizer.register_step_post_hook(lambda *_: calls.append(f"after {value[0].item():.2f}"))
    optimizer.step()
    expected = {"AdamW": 1 - 1e-2 * 1e-2 - 1e-2, "RMSprop": 0.9}.get(name, 0.99)
    assert calls == ["before 1.00", f"after {expected:.2f}"]


@all_optimizers
def test_parameters_added_later_start_at_step_one(name: str) -> None:
    pair = optimizers(name, [torch.linspace(-1, 1, 5)], **ALL_STATES[name])
    for optimizer in pair:
        train(optimizer, 2, seed=1)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.5})
        train(optimizer, 2, seed=2)
        steps = [optimizer.state[p].get("step") for p in parameters_of(optimizer)]
        assert name == "SGD" or [step.item() for step in steps] == [4, 2]
    assert_same_training(*pair)


@all_optimizers
def test_learning_rate_zero_changes_no_parameter(name: str) -> None:
    value = torch.randn(4099)
    optimizer, _ = optimizers(name, [value], lr=0.0, weight_decay=0.1)
    train(optimizer, 3, seed=1)
    assert_same_bits(parameters_of(optimizer)[0], value)


CHANGED: dict[str, dict[str, Any]] = {
    "Adam": {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.2},
    "AdamW": {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.2},
    "SGD": {"momentum": 0.5, "weight_decay": 0.2},  # no momentum before
    "Adagrad": {"lr_decay": 0.1, "eps": 0.1, "weight_decay": 0.2},
    "RMSprop": {"alpha": 0.5, "eps": 0.1, "weight_decay": 0.2},
}


@all_optimizers
def test_options_changed_between_steps_are_used(name: str) -> None:
    pair = optimizers(name, [torch.randn(9)])
    for optimizer in pair:
        train(optimizer, 1, seed=1)
        optimizer.param_groups[0].update(lr=0.3, **CHANGED[name])
        train(optimizer, 2, seed=2)
    assert_same_training(*pair)


@all_optimizers
def test_a_step_is_seen_by_autograd_as_a_change(name: str) -> None:
    optimizer, _ = optimizers(name, [torch.ones(3)])
    (parameter,) = parameters_of(optimizer)
    product = (parameter * parameter).sum()
    set_gradients(optimizer, [torch.ones(3)])
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@all_optimizers
def test_a_compiled_step_gives_the_same_result(name: str) -> None:
    torch.compiler.reset()
    # On a GPU the compiler makes the step capturable, as this one then is from the start.
    on_gpu = torch.get_default_device().type == "cuda"
    options = {"capturable": True} if on_gpu and name not in ("SGD", "Adagrad") else {}
    values = [torch.linspace(-1, 1, 5), torch.ones(3, 2)]
    pair = optimizers(name, values, **{**ALL_STATES[name], **options})
    step = torch.compile(pair[0].step, backend="eager")
    for seed in range(2):
        train(pair[1], 1, seed)
        set_gradients(pair[0], [parameter.grad for parameter in parameters_of(pair[1])])
        step()
    assert_same_training(*pair)
