"""Schedules of fastdl.optim.lr_scheduler: rates by their formulas, state, groups, bad arguments."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import fastdl
from fastdl.optim import lr_scheduler

Make = Callable[[torch.optim.Optimizer], LRScheduler]

BASE = 0.3
WARMUP, TOTAL = 5, 17


def inverse_square_root(n: int) -> float:
    return BASE * min(n / WARMUP, (WARMUP / n) ** 0.5)


def noam(n: int) -> float:
    return 2.0 * 64**-0.5 * min(n**-0.5, n * WARMUP**-1.5)


def cosine(n: int, warmup: int = WARMUP, ratio: float = 0.1) -> float:
    if n < warmup:
        return BASE * n / warmup
    x = min((n - warmup) / (TOTAL - warmup), 1)
    return BASE * (ratio + (1 - ratio) * (1 + math.cos(math.pi * x)) / 2)


def linear(n: int) -> float:
    if n < WARMUP:
        return BASE * n / WARMUP
    return BASE * max(1 - (n - WARMUP) / (TOTAL - WARMUP), 0)


CASES: dict[str, tuple[Make, Callable[[int], float]]] = {
    "InverseSquareRootLR": (
        lambda o: lr_scheduler.InverseSquareRootLR(o, WARMUP),
        inverse_square_root,
    ),
    "NoamLR": (lambda o: lr_scheduler.NoamLR(o, 64, WARMUP, factor=2.0), noam),
    "WarmupCosineLR": (lambda o: lr_scheduler.WarmupCosineLR(o, WARMUP, TOTAL, 0.1), cosine),
    "WarmupCosineLR at once": (
        lambda o: lr_scheduler.WarmupCosineLR(o, 0, TOTAL),
        lambda n: cosine(n, 0, 0.0),
    ),
    "WarmupLinearLR": (lambda o: lr_scheduler.WarmupLinearLR(o, WARMUP, TOTAL), linear),
}

all_schedules = pytest.mark.parametrize(("make", "formula"), CASES.values(), ids=list(CASES))


def optimizer_with(lr: Any = BASE, cls: Any = fastdl.optim.SGD) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    return cls([parameter], lr=lr)


def rates(optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
    """The rate of each of the next steps."""
    seen = []
    for _ in range(steps):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return seen


def test_every_schedule_is_tested() -> None:
    assert {name.split()[0] for name in CASES} == set(lr_scheduler.__all__)


@all_schedules
@pytest.mark.parametrize("cls", [fastdl.optim.AdamW, torch.optim.SGD])
def test_rates_follow_the_formula(make: Make, formula: Callable[[int], float], cls: Any) -> None:
    optimizer = optimizer_with(cls=cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = rates(optimizer, make(optimizer), TOTAL + 5)
    assert seen == pytest.approx([formula(n) for n in range(1, TOTAL + 6)], abs=1e-15)


@pytest.mark.parametrize("make", [make for make, _ in CASES.values()][:1])
def test_the_highest_rate_is_that_of_the_optimizer(make: Make) -> None:
    optimizer = optimizer_with()
    seen = rates(optimizer, make(optimizer), TOTAL)
    assert max(seen) == seen[WARMUP - 1] == BASE


def test_noam_is_the_inverse_square_root_with_its_highest_rate() -> None:
    first, second = optimizer_with(lr=2.0 / math.sqrt(64 * WARMUP)), optimizer_with()
    inverse = lr_scheduler.InverseSquareRootLR(first, WARMUP)
    transformer = lr_scheduler.NoamLR(second, 64, WARMUP, factor=2.0)
    assert rates(first, inverse, 30) == pytest.approx(rates(second, transformer, 30))


@all_schedules
def test_groups_keep_their_ratio(make: Make, formula: Callable[[int], float]) -> None:
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one], "lr": BASE}, {"params": [two], "lr": 2 * BASE}])
    schedule = make(optimizer)
    ratio = 1 if isinstance(schedule, lr_scheduler.NoamLR) else 2
    for n in range(1, TOTAL):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(formula(n))
        assert schedule.get_last_lr()[1] == pytest.approx(ratio * formula(n))
        optimizer.step()
        schedule.step()


@all_schedules
def test_a_rate_in_a_tensor_stays_that_tensor(make: Make, formula: Callable[[int], float]) -> None:
    rate = torch.tensor(BASE, dtype=torch.float64)
    optimizer = optimizer_with(rate)
    seen = rates(optimizer, make(optimizer), TOTAL)
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen == pytest.approx([formula(n) for n in range(1, TOTAL + 1)])


@all_schedules
def test_training_goes_on_from_a_state_dict(make: Make, formula: Callable[[int], float]) -> None:
    optimizer = optimizer_with()
    schedule = make(optimizer)
    rates(optimizer, schedule, 7)
    other = optimizer_with()
    resumed = make(other)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    assert rates(other, resumed, 9) == pytest.approx([formula(n) for n in range(8, 17)])


@all_schedules
def test_a_schedule_can_be_pickled_with_its_optimizer(
    make: Make, formula: Callable[[int], float]
) -> None:
    optimizer = optimizer_with()
    schedule = make(optimizer)
    rates(optimizer, schedule, 3)
    copied = pickle.loads(pickle.dumps(schedule))
    assert type(copied) is type(schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: the copy's optimizer is not watched
        seen = rates(copied.optimizer, copied, 4)
    assert seen == pytest.approx([formula(n) for n in range(4, 8)])


@all_schedules
def test_last_epoch_resumes(make: Make, formula: Callable[[int], float]) -> None:
    optimizer = optimizer_with()
    schedule = make(optimizer)
    rates(optimizer, schedule, 6)
    arguments = {k: v for k, v in vars(schedule).items() if k in ("warmup_steps", "total_steps")}
    arguments |= {
        k: v for k, v in vars(schedule).items() if k in ("min_ratio", "d_model", "factor")
    }
    again = type(schedule)(optimizer, **arguments, last_epoch=5)
    assert again.get_last_lr() == pytest.approx([formula(7)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda o: lr_scheduler.InverseSquareRootLR(o, 0),
            ValueError,
            "warmup_steps must be at least 1, but is 0",
        ),
        (
            lambda o: lr_scheduler.InverseSquareRootLR(o, 2.5),
            TypeError,
            "warmup_steps must be an int, but is 2.5",
        ),
        (
            lambda o: lr_scheduler.NoamLR(o, 0, 10),
            ValueError,
            "d_model must be at least 1, but is 0",
        ),
        (
            lambda o: lr_scheduler.NoamLR(o, 8, 10, factor=-1.0),
            ValueError,
            "factor must be at least 0.0, but is -1.0",
        ),
        (
            lambda o: lr_scheduler.WarmupCosineLR(o, -1, 10),
            ValueError,
            "warmup_steps must be at least 0, but is -1",
        ),
        (
            lambda o: lr_scheduler.WarmupCosineLR(o, 10, 10),
            ValueError,
            "total_steps must be more than warmup_steps=10, but is 10",
        ),
        (
            lambda o: lr_scheduler.WarmupLinearLR(o, 1, 10, min_ratio=1.5),
            ValueError,
            "min_ratio must be between 0.0 and 1.0, but is 1.5",
        ),
        (
            lambda o: lr_scheduler.WarmupLinearLR(o, 1, 10, min_ratio=math.nan),
            ValueError,
            "min_ratio must be between 0.0 and 1.0, but is nan",
        ),
        (lambda o: lr_scheduler.NoamLR("sgd", 8, 10), TypeError, "str is not an Optimizer"),
    ],
)
def test_wrong_arguments_are_named(make: Make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(optimizer_with())


def test_a_schedule_follows_another_in_a_sequence() -> None:
    optimizer = optimizer_with()
    first = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=10)
    second = lr_scheduler.WarmupLinearLR(optimizer, WARMUP, TOTAL)
    chain = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own SequentialLR
        seen = rates(optimizer, chain, 10)
    assert seen == pytest.approx([BASE / 2] * 3 + [linear(n) for n in range(1, 8)])
