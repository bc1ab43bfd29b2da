"""What the tests of all optimizers share: pairs of fastdl's and torch's, training, comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from tests.compare import assert_as_accurate_as_torch
from tests.outcome import Outcome, assert_same_outcome
from tests.reference_optim import STEPS
from tests.tensors import DTYPES, dtype_name

NAMES = ("Adam", "AdamW", "SGD", "Adagrad", "RMSprop")

all_optimizers = pytest.mark.parametrize("name", NAMES)
adam_optimizers = pytest.mark.parametrize("name", ["Adam", "AdamW"])
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)

# Options with which a step has all states that it can have, and takes every branch.
ALL_STATES: dict[str, dict[str, Any]] = {
    "Adam": {"weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"weight_decay": 0.1, "amsgrad": True},
    "SGD": {"weight_decay": 0.1, "momentum": 0.9},
    "Adagrad": {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "RMSprop": {"weight_decay": 0.1, "momentum": 0.9, "centered": True},
}

# torch keeps eps in the parameter's dtype, where float16 has only 0 for the default of 1e-8: its
# result is infinite or NaN then, and nothing to compare with.
FLOAT16_EPS = 1e-3


def eps_for(name: str, *dtypes: torch.dtype) -> dict[str, float]:
    """The option with which torch has a result for these dtypes."""
    return {"eps": FLOAT16_EPS} if torch.float16 in dtypes and name != "SGD" else {}


def optimizers(
    name: str, values: list[Tensor], **options: Any
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """fastdl's and torch's, each on its own copies of the same parameters."""
    made = []
    for package in (fastdl.optim, torch.optim):
        parameters = [torch.nn.Parameter(value.clone()) for value in values]
        made.append(getattr(package, name)(parameters, **{"lr": 1e-2, **options}))
    return made[0], made[1]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient if gradient is None else gradient.clone()


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    """Some steps with random gradients that depend on the seed alone."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters_of(optimizer):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def assert_same_training(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Parameters and states are close, steps equal."""
    for ours, theirs in zip(parameters_of(one), parameters_of(other), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert one.state[ours].keys() == other.state[theirs].keys()
        for key, value in other.state[theirs].items():
            torch.testing.assert_close(one.state[ours][key], value, msg=key)


def both(name: str, use: Callable[[Any], Any], **options: Any) -> Outcome:
    """Runs `use` with fastdl's class and with torch's; same result or same exception."""
    return assert_same_outcome(
        lambda: use(getattr(fastdl.optim, name)), lambda: use(getattr(torch.optim, name)), **options
    )


def check_steps(name: str, values: list[Tensor], steps: int, **options: Any) -> None:
    """Parameters and state after `steps` steps are as accurate as torch's."""
    options = {**eps_for(name, *(value.dtype for value in values)), **options}
    fast, native = optimizers(name, values, **options)
    formula = {**options, "lr": float(options.get("lr", 1e-2))}
    for flag in ("capturable", "fused"):
        formula.pop(flag, None)
    states: list[dict[str, Any]] = [{} for _ in values]
    exact = [value.double() for value in values]
    for _ in range(steps):
        gradients = [torch.randn_like(value) for value in values]
        set_gradients(fast, gradients)
        set_gradients(native, gradients)
        with fastdl.strict():
            fast.step()
        native.step()
        for i, gradient in enumerate(gradients):
            exact[i], states[i] = STEPS[name](exact[i], gradient, states[i], **formula)
    pairs = list(zip(parameters_of(fast), parameters_of(native), strict=True))
    for number, (ours, theirs) in enumerate(pairs):
        compare_states(fast.state[ours], native.state[theirs], states[number])
        assert torch.equal(ours.grad, theirs.grad)
    for dtype in {value.dtype for value in values}:
        chosen = [i for i, value in enumerate(values) if value.dtype == dtype]
        ours, theirs = (
            [pair[side] for i, pair in enumerate(pairs) if i in chosen] for side in (0, 1)
        )
        compare_all(ours, theirs, [exact[i] for i in chosen], f"param {dtype}")
        for key in set(native.state[theirs[0]]) - {"step"}:
            compare_all(
                [fast.state[p][key] for p in ours],
                [native.state[p][key] for p in theirs],
                [states[i][key] for i in chosen],
                f"{key} {dtype}",
            )


def compare_all(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], label: str) -> None:
    """All tensors of a type at once: of a single number no comparison can be made."""
    flat = [torch.cat([t.detach().flatten() for t in part]) for part in (ours, theirs, exact)]
    assert_as_accurate_as_torch(*flat, label=label)


def compare_states(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Any]
) -> None:
    """What the state of one parameter is, values apart."""
    assert list(ours) == list(theirs)
    if "step" in theirs:
        assert ours["step"].item() == theirs["step"].item() == exact["step"]
    for key, value in theirs.items():
        assert (ours[key].dtype, ours[key].stride()) == (value.dtype, value.stride()), key
