"""group_norm: values and gradients next to torch's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from tests import reference
from tests.cases import copies
from tests.compare import assert_as_accurate_as_torch, assert_same_bits, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, REDUCED_DTYPES, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)

# (batch, channels, *space), groups
SHAPES = [
    ((5, 6), 2), ((3, 70), 7), ((2, 1024), 1), ((3, 6, 5), 3), ((4, 6, 1), 1), ((2, 12, 2, 2), 4),
    ((3, 8, 7, 7), 8), ((3, 8, 4, 16), 2), ((2, 4, 47, 45), 1), ((1, 2, 1, 4099), 2),
    ((2, 6, 2, 3, 4), 3), ((2, 600, 3, 2), 5),
]  # fmt: skip


def check(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, layout: str, **options: Any
) -> None:
    parameters = options.pop("parameters", dtype)
    weight = bias = None
    if parameters is not None:
        weight, bias = (random_tensor(shape[1:2], parameters) for _ in range(2))
    eps = options.pop("eps", 1e-5)
    check_function(
        lambda m, x, w, b: m.group_norm(x, groups, w, b, eps),
        random_tensor(shape, dtype, layout),
        weight,
        bias,
        label=f"{shape} in {groups} {layout}",
        **options,
    )


@pytest.mark.every_isa
@all_dtypes
@pytest.mark.parametrize("affine", [True, False])
def test_every_shape_channels_first_and_last(dtype: torch.dtype, affine: bool) -> None:
    for shape, groups in SHAPES:
        for layout in ("contiguous", "channels_last") if len(shape) > 3 else ("contiguous",):
            check(shape, groups, dtype, layout, parameters=dtype if affine else None)


@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_16_bit_input_with_float32_parameters(dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        check((4, 6, 5, 7), 3, dtype, layout, parameters=torch.float32)


@all_dtypes
def test_an_eps_that_counts_as_much_as_the_variance(dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        check((4, 6, 5, 7), 3, dtype, layout, eps=0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str) -> None:
    for shape in ((6, 12), (4, 6, 9), (4, 6, 5, 7)):
        check(shape, 2, torch.float32, layout)
        grad = random_tensor(shape, torch.float32, layout)
        check(shape, 2, torch.float32, "contiguous", grad_output=grad)
        check(shape, 2, torch.float32, "channels_last", grad_output=grad)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 2, 512, 700), (9, 4, 200, 150), (40, 24, 40, 60)], ids=str)
def test_large_tensors(layout: str, shape: tuple[int, ...]) -> None:
    check(shape, 2, torch.float32, layout)


@all_dtypes
@pytest.mark.parametrize("which", list(itertools.product((False, True), repeat=3)), ids=str)
def test_each_choice_of_wanted_gradients(dtype: torch.dtype, which: tuple[bool, ...]) -> None:
    values = [random_tensor(shape, dtype) for shape in ((5, 6, 7), (6,), (6,))]
    if not any(which):
        return
    results = []
    for module in (fastdl.functional, F, reference):
        leaves = copies([v.double() for v in values] if module is reference else values)
        for leaf, want in zip(leaves, which, strict=True):
            leaf.requires_grad_(want)
        output = module.group_norm(leaves[0], 3, *leaves[1:])
        output.backward(torch.linspace(-1, 2, 210).reshape(5, 6, 7).to(output.dtype))
        results.append([leaf.grad for leaf in leaves])
    for fast, native, exact, want in zip(*results, which, strict=True):
        assert (fast is not None) == (native is not None) == want
        if want:
            assert_as_accurate_as_torch(fast, native, exact, gradient=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_number_of_threads_changes_no_bit(layout: str) -> None:
    # Groups in parts: one after another by one thread, all at once by three
    leaves = [random_tensor((2, 4, 330, 420), torch.float32, layout), *torch.randn(2, 4)]
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        own = copies([leaf.requires_grad_() for leaf in leaves])
        output = fastdl.functional.group_norm(own[0], 2, *own[1:])
        results.append([output, *torch.autograd.grad(output.sin().sum(), own)])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


X = torch.ones(2, 6, 4)
WRONG: dict[str, tuple[Any, ...]] = {
    "groups that do not divide": (X, 4),
    "no groups": (X, 0),
    "negative groups": (X, -2),
    "groups of a wrong type": (X, 2.0),
    "one value per group": (torch.ones(1, 6), 6),
    "one dimension": (torch.ones(6), 2),
    "weight of another size": (X, 2, torch.ones(5)),
    "weight of two dimensions": (X, 2, torch.ones(6, 1)),
    "bias of another size": (X, 2, None, torch.ones(5)),
    "another dtype": (X, 2, torch.ones(6).double()),
    "weight and bias of different dtypes": (
        X.bfloat16(), 2, torch.ones(6).bfloat16(), torch.ones(6),
    ),
    "eps 0": (X, 2, None, None, 0.0),
    "eps None": (X, 2, None, None, None),
    "empty batch": (torch.ones(0, 6, 4), 2),
    "empty space": (torch.ones(2, 6, 0), 2),
    "integers": (X.int(), 2),
    "complex": (X.to(torch.complex64), 2),
    "no tensor": ([1.0], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_unusual_arguments_have_the_outcome_of_torch(name: str) -> None:
    def call(function: Any) -> Tensor:
        return function(*WRONG[name])

    assert_same_outcome(lambda: call(fastdl.functional.group_norm), lambda: call(F.group_norm))
