"""Adam and AdamW: values next to torch's and to the formula in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests.compare import assert_as_accurate_as_torch
from tests.reference import AdamState, adam_step
from tests.tensors import DTYPES, REDUCED_DTYPES, SIZES, dtype_name, random_tensor

# Below, at and above one and four blocks of the kernel, and empty.
LENGTHS = (0, *SIZES, 4095, 4096, 4097, 16383, 16385, 20011)

# torch keeps eps in the parameter's dtype, where float16 has only 0 for the default of 1e-8: its
# result is infinite or NaN then, and nothing to compare with.
FLOAT16_EPS = 1e-3

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay": {"weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "all": {"weight_decay": 0.1, "amsgrad": True, "maximize": True},
    "betas and eps": {"betas": (0.5, 0.75), "eps": 1e-3},
    "no momentum": {"betas": (0.0, 0.0)},
    "no learning": {"lr": 0.0, "weight_decay": 0.1},
    "tensor lr": {"lr": torch.tensor(0.02)},
}

all_optimizers = pytest.mark.parametrize("name", ["Adam", "AdamW"])
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def optimizers(
    name: str, values: list[Tensor], **options: Any
) -> tuple[torch.optim.Adam, torch.optim.Adam]:
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


def check_steps(name: str, values: list[Tensor], steps: int, **options: Any) -> None:
    """Parameters and state after `steps` steps are as accurate as torch's."""
    if any(value.dtype == torch.float16 for value in values):
        options = {"eps": FLOAT16_EPS, **options}
    fast, native = optimizers(name, values, **options)
    formula = {"weight_decay": 0.01 if name == "AdamW" else 0.0, **options}
    formula["lr"] = float(options.get("lr", 1e-2))
    for flag in ("capturable", "fused"):
        formula.pop(flag, None)
    states = [AdamState.zeros(value) for value in values]
    exact = [value.double() for value in values]
    for _ in range(steps):
        gradients = [torch.randn_like(value) for value in values]
        set_gradients(fast, gradients)
        set_gradients(native, gradients)
        with fastdl.strict():
            fast.step()
        native.step()
        for i, gradient in enumerate(gradients):
            exact[i], states[i] = adam_step(
                exact[i], gradient, states[i], decoupled_weight_decay=name == "AdamW", **formula
            )
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
        for key in list(native.state[theirs[0]])[1:]:
            compare_all(
                [fast.state[p][key] for p in ours],
                [native.state[p][key] for p in theirs],
                [getattr(states[i], key) for i in chosen],
                f"{key} {dtype}",
            )


def compare_all(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], label: str) -> None:
    """All tensors of a type at once: of a single number no comparison can be made."""
    flat = [torch.cat([t.detach().flatten() for t in part]) for part in (ours, theirs, exact)]
    assert_as_accurate_as_torch(*flat, label=label)


def compare_states(ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: AdamState) -> None:
    """What the state of one parameter is, values apart."""
    assert list(ours) == list(theirs)
    assert ours["step"].item() == theirs["step"].item() == exact.step
    for key, value in theirs.items():
        assert (ours[key].dtype, ours[key].stride()) == (value.dtype, value.stride()), key


@pytest.mark.every_isa
@all_optimizers
@all_dtypes
@all_options
def test_one_step_of_tensors_of_every_length(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    check_steps(name, [random_tensor((length,), dtype) for length in LENGTHS], 1, **options)


@all_optimizers
@all_dtypes
@all_options
@pytest.mark.usefixtures("threads")
def test_ten_steps(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    shapes = [(33, 7), (1,), (4097,), (5, 3, 3, 3), (), (0, 3), (40_001,)]
    check_steps(name, [random_tensor(shape, dtype) for shape in shapes], 10, **options)


@all_optimizers
@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_16_bit_step_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(random_tensor((4099,), dtype))
    before = parameter.detach().clone()
    parameter.grad = grad = random_tensor((4099,), dtype)
    getattr(fastdl.optim, name)([parameter], lr=1e-2, weight_decay=0.1).step()
    exact, _ = adam_step(
        before,
        grad,
        AdamState.zeros(before),
        lr=1e-2,
        weight_decay=0.1,
        decoupled_weight_decay=name == "AdamW",
    )
    half_unit = 0.502 * torch.finfo(dtype).eps * exact.abs()
    assert ((parameter - exact).abs() <= half_unit + 1e-7).all()


@all_optimizers
def test_float16_with_tiny_gradients_stays_finite_where_torch_does_not(name: str) -> None:
    values = [torch.ones(4, dtype=torch.float16)]
    fast, native = optimizers(name, values, weight_decay=0.0)
    for optimizer in (fast, native):
        set_gradients(optimizer, [torch.tensor([0.0, 1e-4, -1e-4, 1.0], dtype=torch.float16)])
        optimizer.step()
    assert not parameters_of(native)[0].isfinite().all()
    expected = torch.tensor([1.0, 0.99, 1.01, 0.99])
    torch.testing.assert_close(parameters_of(fast)[0].float(), expected, rtol=1e-3, atol=1e-3)


@all_optimizers
def test_mixed_dtypes_in_one_group(name: str) -> None:
    values = [
        random_tensor((size,), dtype)
        for size, dtype in itertools.product((1, 17, 4097), (*DTYPES, *DTYPES))
    ]
    check_steps(name, values, 3, weight_decay=0.1)


@all_optimizers
@all_dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e30, 1e-30])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_special_gradients_are_treated_like_torch(
    name: str, dtype: torch.dtype, value: float, amsgrad: bool
) -> None:
    eps = FLOAT16_EPS if dtype == torch.float16 else 1e-8
    fast, native = optimizers(name, [random_tensor((37,), dtype)], amsgrad=amsgrad, eps=eps)
    for index in (3, 36):
        gradient = random_tensor((37,), dtype)
        gradient[index] = value
        for optimizer in (fast, native):
            set_gradients(optimizer, [gradient])
            optimizer.step()
    tolerance = 0.05 if dtype in REDUCED_DTYPES else 1e-5
    ours, theirs = parameters_of(fast)[0], parameters_of(native)[0]
    results = [[*o.state[p].values(), p] for o, p in ((fast, ours), (native, theirs))]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=tolerance, atol=tolerance)


@all_optimizers
def test_groups_have_their_own_options(name: str) -> None:
    made = []
    values = [torch.randn(n) for n in (5, 17, 33, 100)]
    for package in (fastdl.optim, torch.optim):
        own = [torch.nn.Parameter(value.clone()) for value in values]
        groups: list[dict[str, Any]] = [
            {"params": own[:2]},
            {"params": own[2:3], "lr": 0.1, "weight_decay": 0.2, "betas": (0.8, 0.9)},
            {"params": own[3:], "maximize": True, "amsgrad": True, "eps": 1e-2},
        ]
        made.append(getattr(package, name)(groups, lr=1e-3))
    for _ in range(4):
        gradients = [torch.randn_like(value) for value in values]
        for optimizer in made:
            set_gradients(optimizer, gradients)
            optimizer.step()
    torch.testing.assert_close(parameters_of(made[0]), parameters_of(made[1]))


@all_optimizers
def test_two_runs_give_the_same_bits(name: str) -> None:
    value, gradient = torch.randn(100_003), torch.randn(100_003)
    results = []
    for count in (1, 3, 3):
        torch.set_num_threads(count)
        parameter = torch.nn.Parameter(value.clone())
        optimizer = getattr(fastdl.optim, name)([parameter])
        for _ in range(3):
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


@given(data=st.data())
@all_optimizers
def test_any_list_of_tensors_and_options(name: str, data: st.DataObject) -> None:
    shape = st.lists(st.integers(0, 12), max_size=3)
    shapes = data.draw(st.lists(shape, min_size=1, max_size=6), "shapes")
    options = {
        "lr": data.draw(st.sampled_from([1e-4, 1e-3, 1e-2]), "lr"),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.1]), "weight_decay"),
        "amsgrad": data.draw(st.booleans(), "amsgrad"),
        "maximize": data.draw(st.booleans(), "maximize"),
    }
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    values = [random_tensor(shape, dtype) for shape in shapes]
    check_steps(name, values, data.draw(st.integers(1, 3), "steps"), **options)
