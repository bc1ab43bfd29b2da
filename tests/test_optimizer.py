"""Steps of the optimizers: values next to torch's and to the formula in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdl
from tests.optimizers import (
    ALL_STATES,
    NAMES,
    adam_optimizers,
    all_dtypes,
    all_optimizers,
    check_steps,
    eps_for,
    optimizers,
    parameters_of,
    set_gradients,
)
from tests.reference_optim import STEPS
from tests.tensors import DTYPES, REDUCED_DTYPES, SIZES, dtype_name, random_tensor

# Below, at and above one and four blocks of the kernel, and empty.
LENGTHS = (0, *SIZES, 4095, 4096, 4097, 16383, 16385, 20011)

COMMON: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "no learning": {"lr": 0.0, "weight_decay": 0.1},
    "tensor lr": {"lr": torch.tensor(0.02)},
}
ADAM: dict[str, dict[str, Any]] = {
    "amsgrad": {"amsgrad": True},
    "betas and eps": {"betas": (0.5, 0.75), "eps": 1e-3},
    "no momentum": {"betas": (0.0, 0.0)},
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "SGD": {
        "momentum": {"momentum": 0.9},
        "dampening": {"momentum": 0.9, "dampening": 0.3},
        "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    },
    "Adagrad": {
        "lr_decay and eps": {"lr_decay": 0.5, "eps": 1e-3},
        "initial_accumulator_value": {"initial_accumulator_value": 0.5},
    },
    "RMSprop": {
        "alpha and eps": {"alpha": 0.4, "eps": 1e-3},
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
    },
}
CASES = {
    f"{name} {label}": (name, options)
    for name in NAMES
    for label, options in {
        **COMMON,
        **OWN[name],
        "all": {**ALL_STATES[name], "maximize": True},
    }.items()
}
all_options = pytest.mark.parametrize(("name", "options"), CASES.values(), ids=list(CASES))

# What else a group may differ in.
OWN_GROUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Adam": ({"betas": (0.8, 0.9)}, {"eps": 1e-2}),
    "AdamW": ({"betas": (0.8, 0.9)}, {"eps": 1e-2}),
    "SGD": ({"momentum": 0.7, "nesterov": True}, {"dampening": 0.3}),
    "Adagrad": ({"lr_decay": 0.5}, {"eps": 1e-2}),
    "RMSprop": ({"alpha": 0.4, "centered": True}, {"eps": 1e-2}),
}


@pytest.mark.every_isa
@all_dtypes
@all_options
def test_one_step_of_tensors_of_every_length(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    check_steps(name, [random_tensor((length,), dtype) for length in LENGTHS], 1, **options)


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
    exact, _ = STEPS[name](before, grad, {}, lr=1e-2, weight_decay=0.1)
    half_unit = 0.502 * torch.finfo(dtype).eps * exact.abs()
    assert ((parameter - exact).abs() <= half_unit + 1e-7).all()


@adam_optimizers
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
@pytest.mark.parametrize("all_states", [False, True])
def test_special_gradients_are_treated_like_torch(
    name: str, dtype: torch.dtype, value: float, all_states: bool
) -> None:
    # torch rounds RMSprop's states to 16 bits so often that only few digits are left.
    all_states = all_states and not (name == "RMSprop" and dtype in REDUCED_DTYPES)
    options = {**(ALL_STATES[name] if all_states else {}), **eps_for(name, dtype)}
    fast, native = optimizers(name, [random_tensor((37,), dtype)], **options)
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
            {"params": own[2:3], "lr": 0.1, "weight_decay": 0.2, **OWN_GROUPS[name][0]},
            {"params": own[3:], "maximize": True, **ALL_STATES[name], **OWN_GROUPS[name][1]},
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
        optimizer = getattr(fastdl.optim, name)([parameter], **ALL_STATES[name])
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
        **(ALL_STATES[name] if data.draw(st.booleans(), "all states") else {}),
        "lr": data.draw(st.sampled_from([1e-4, 1e-3, 1e-2]), "lr"),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.1]), "weight_decay"),
        "maximize": data.draw(st.booleans(), "maximize"),
    }
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    values = [random_tensor(shape, dtype) for shape in shapes]
    check_steps(name, values, data.draw(st.integers(1, 3), "steps"), **options)


@pytest.mark.slow
@all_optimizers
def test_a_parameter_of_more_than_2_to_the_31_elements(name: str) -> None:
    size = 2**31 + 4099
    parameter = torch.zeros(size, dtype=torch.bfloat16, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    parts = [slice(0, 7), slice(size - 4106, size - 4092), slice(size - 7, size)]
    for part in parts:
        parameter.grad[part].normal_()
    expected = [torch.nn.Parameter(parameter.detach()[part].float()) for part in parts]
    for own, part in zip(expected, parts, strict=True):
        own.grad = parameter.grad[part].float()
    with fastdl.strict():
        getattr(fastdl.optim, name)([parameter], lr=0.5).step()
    getattr(torch.optim, name)(expected, lr=0.5).step()
    for own, part in zip(expected, parts, strict=True):
        torch.testing.assert_close(parameter[part], own.bfloat16(), rtol=1e-2, atol=1e-3)
