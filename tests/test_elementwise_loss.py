"""mse, l1, smooth_l1, huber and binary cross-entropy of logits against the formulas in float64."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests.compare import Call, assert_same_bits, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, SIZES, dtype_name, random_tensor

BINARY = "binary_cross_entropy_with_logits"
LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", BINARY)
REDUCTIONS = ("none", "mean", "sum")
BLOCK = 8192  # elements that the kernel sums together

all_losses = pytest.mark.parametrize("name", LOSSES)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def loss(name: str, reduction: str, **options: Any) -> Call:
    """The call of one loss."""

    def call(module: ModuleType, input: Tensor, target: Tensor) -> Tensor:
        return getattr(module, name)(input, target, reduction=reduction, **options)

    return call


def pair(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous"
) -> tuple[Tensor, Tensor]:
    """Input and target, a probability where the loss wants one."""
    target = torch.randn(shape, dtype=torch.float64)
    target = LAYOUTS[layout]((target.sigmoid() if name == BINARY else target).to(dtype))
    return random_tensor(shape, dtype, layout), target


@pytest.mark.every_isa
@all_losses
@all_dtypes
def test_every_size_and_reduction(name: str, dtype: torch.dtype) -> None:
    for size, reduction in zip(SIZES, itertools.cycle(REDUCTIONS), strict=False):
        check_function(loss(name, reduction), *pair(name, (size,), dtype), label=f"{size}")
    for size in (7, 33):
        for reduction in REDUCTIONS:
            check_function(loss(name, reduction), *pair(name, (size,), dtype), label=f"{size}")


@all_losses
@all_dtypes
@pytest.mark.usefixtures("threads")
def test_several_blocks(name: str, dtype: torch.dtype) -> None:
    # The means of many independent losses, so that the comparison is not one of single numbers.
    for size in (BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77):
        check_function(loss(name, "none"), *pair(name, (size,), dtype), label=f"{size}")
        # Small enough that their sum is a number of float16.
        inputs = [(t / 4).requires_grad_() for t in pair(name, (size,), dtype)]
        exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
        for reduction in ("mean", "sum"):
            with fastdl.strict():
                got = loss(name, reduction)(fastdl.functional, *inputs)
                grads = torch.autograd.grad(got, inputs)
            exact = loss(name, reduction)(torch.nn.functional, *exact_inputs)
            eps = torch.finfo(dtype).eps
            rtol = max(4 * eps, 1e-12)
            torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=0)
            for grad, right in zip(grads, torch.autograd.grad(exact, exact_inputs), strict=True):
                atol = 4 * max(eps * right.abs().max().item(), torch.finfo(dtype).tiny)
                torch.testing.assert_close(grad.double(), right, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["huber_loss", BINARY])
@pytest.mark.parametrize("layout", ["contiguous", "unaligned"])
@pytest.mark.usefixtures("threads")
def test_outputs_larger_than_the_cache(name: str, layout: str) -> None:
    # Results are written past the cache, in vectors that must be aligned.
    dtype = torch.float32 if name == "huber_loss" else torch.bfloat16
    check_function(loss(name, "none"), *pair(name, (3_000_017,), dtype, layout))


@all_losses
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_layout(name: str, layout: str, reduction: str) -> None:
    for shape in ((7, 33), (2, 3, 5, 9)):
        kernel = reduction != "none" or layout in ("contiguous", "unaligned", "channels_last")
        for layouts in ((layout, layout), (layout, "contiguous"), ("contiguous", layout)):
            input, target = (
                pair(name, shape, torch.float32, one)[i] for i, one in enumerate(layouts)
            )
            is_kernel = kernel and (
                reduction != "none" or input.stride() == target.stride() or input.dim() != 4
            )
            check_function(
                loss(name, reduction), input, target, label=f"{shape} {layouts}", kernel=is_kernel
            )
    x, target = pair(name, (4, 6, 5), torch.float32)
    turned = (x.permute(2, 0, 1), target.permute(2, 0, 1))
    check_function(loss(name, "none"), *turned, label="both turned")
    check_function(loss(name, "none"), *turned, grad_output=random_tensor((5, 4, 6)))


@all_losses
@all_dtypes
def test_empty_tensors_and_scalars(name: str, dtype: torch.dtype) -> None:
    for shape in ((0,), (0, 3), (), (1,)):
        for reduction in REDUCTIONS:
            check_function(loss(name, reduction), *pair(name, shape, dtype), label=str(shape))


@all_dtypes
@pytest.mark.parametrize("threshold", [0.0, 1e-3, 0.5, 1, 7.5])
def test_every_beta_and_delta(dtype: torch.dtype, threshold: float) -> None:
    x, target = pair("huber_loss", (5, 67), dtype)
    for reduction in REDUCTIONS:
        check_function(loss("smooth_l1_loss", reduction, beta=threshold), x, target)
        if threshold > 0:
            check_function(loss("huber_loss", reduction, delta=threshold), x, target)


@all_dtypes
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_shape_of_weights(dtype: torch.dtype, reduction: str) -> None:
    shape = (6, 5, 37)
    x, target = pair(BINARY, shape, dtype)
    shapes = [(), (1,), (37,), (5, 37), (1, 5, 37), (6, 5, 37), (6, 1, 1), (5, 1), (6, 1, 37)]
    for weight_shape, pos_shape in zip(shapes, shapes[1:] + shapes[:1], strict=True):
        weight, pos_weight = (random_tensor(s, dtype).abs() for s in (weight_shape, pos_shape))
        for options in ({"weight": weight}, {"pos_weight": pos_weight}):
            check_function(loss(BINARY, reduction, **options), x, target, label=f"{weight_shape}")
        both = loss(BINARY, reduction, weight=weight, pos_weight=pos_weight)
        check_function(both, x, target, label=f"{weight_shape} {pos_shape}")


@pytest.mark.usefixtures("threads")
def test_weights_over_many_blocks() -> None:
    for cols in (3, 1000, 5000, 40_000):
        shape = (120_000 // cols, cols)
        x, target = pair(BINARY, shape, torch.float64)
        weight, pos_weight = torch.rand(cols).double(), torch.rand(shape[0], 1).double()
        for reduction in REDUCTIONS:
            call = loss(BINARY, reduction, weight=weight, pos_weight=pos_weight)
            check_function(call, x, target, label=f"{shape}")


@all_losses
def test_only_the_wanted_gradient_is_computed(name: str) -> None:
    x, target = pair(name, (5, 67), torch.float32)
    both = [tensor.detach().requires_grad_() for tensor in (x, target)]
    expected = torch.autograd.grad(loss(name, "mean")(fastdl.functional, *both), both)
    for wanted in range(2):
        tensors = [x.detach(), target.detach()]
        tensors[wanted].requires_grad_()
        with fastdl.strict():
            output = loss(name, "mean")(fastdl.functional, *tensors)
            (grad,) = torch.autograd.grad(output, tensors[wanted])
        assert_same_bits(grad, expected[wanted])


@all_losses
def test_sums_are_the_same_with_any_number_of_threads(name: str) -> None:
    inputs = pair(name, (300_001,), torch.float32)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(loss(name, "sum")(fastdl.functional, *inputs))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@given(data=st.data())
def test_any_shape_dtype_layout_and_reduction(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(LOSSES), "name")
    shape = tuple(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4), "shape"))
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    inputs = pair(name, shape, dtype, layout)
    check_function(loss(name, "none"), *inputs, kernel=False)
    outputs = [
        loss(name, "mean")(module, *inputs) for module in (fastdl.functional, torch.nn.functional)
    ]
    torch.testing.assert_close(*outputs, rtol=4 * torch.finfo(dtype).eps, atol=1e-6, equal_nan=True)


HANDED_OVER: dict[str, tuple[str, dict[str, Any]]] = {
    "size_average": ("mse_loss", {"size_average": False}),
    "reduce": ("l1_loss", {"reduce": False}),
    "both": (BINARY, {"size_average": True, "reduce": True}),
    "weight of mse": ("mse_loss", {"weight": torch.ones(3, 4)}),
    "weight of l1": ("l1_loss", {"weight": torch.ones(3, 4), "reduction": "sum"}),
    "weight of huber": ("huber_loss", {"weight": torch.ones(3, 4), "reduction": "none"}),
    "wrong weight": ("mse_loss", {"weight": torch.ones(4)}),
    "weight that wants a gradient": (BINARY, {"pos_weight": torch.ones(4).requires_grad_()}),
    "weight of another dtype": (BINARY, {"weight": torch.ones(4).double()}),
    "weight of a wrong shape": (BINARY, {"weight": torch.ones(5)}),
    "reduction": ("mse_loss", {"reduction": "median"}),
    "no reduction": (BINARY, {"reduction": None}),
    "negative beta": ("smooth_l1_loss", {"beta": -1.0}),
    "infinite beta": ("smooth_l1_loss", {"beta": float("inf")}),
    "NaN delta": ("huber_loss", {"delta": float("nan")}),
    "zero delta": ("huber_loss", {"delta": 0.0}),
    "tiny delta": ("huber_loss", {"delta": 1e-30}),
}


@pytest.mark.parametrize("case", HANDED_OVER)
def test_what_only_torch_has_is_handed_over(case: str) -> None:
    name, options = HANDED_OVER[case]
    x, target = pair(name, (3, 4), torch.float32)
    calls = [
        lambda m=m: getattr(m, name)(x, target, **options)
        for m in (fastdl.functional, torch.nn.functional)
    ]
    assert_same_outcome(*calls, case)
    ((op, reason, count),) = fastdl.report().hand_overs
    assert op == name and reason and count == 1


@all_losses
def test_different_shapes_and_dtypes_are_torchs(name: str) -> None:
    x, target = pair(name, (3, 4), torch.float32)
    for other in (target[0], target[:2], target.double(), target.bfloat16(), target.to("meta")):
        for one, two in ((x, other), (other, x)):
            calls = [
                lambda m=m, a=one, b=two: getattr(m, name)(a, b)
                for m in (fastdl.functional, torch.nn.functional)
            ]
            assert_same_outcome(*calls, f"{one.shape} {one.dtype}")
