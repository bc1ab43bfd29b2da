"""cross_entropy and nll_loss: values and gradients next to torch's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from tests.compare import Call, check_function
from tests.tensors import DTYPES, LAYOUTS, SIZES, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
REDUCTIONS = ("mean", "sum", "none")


def indices(shape: tuple[int, ...], ignored: int | None = None) -> Tensor:
    """Random class indices for logits of this shape; every fourth is `ignored`."""
    dim = min(len(shape) - 1, 1)
    target = torch.randint(0, shape[dim], shape[:dim] + shape[dim + 1 :])
    if ignored is not None:
        target = torch.where(torch.rand(target.shape) < 0.25, ignored, target)
    return target


def probabilities(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).softmax(min(len(shape) - 1, 1)).to(dtype)


def loss_of(target: Tensor, function: str = "cross_entropy", **options: Any) -> Call:
    """The call of a loss with this target; its tensor argument is the logits."""

    def call(module: ModuleType, input: Tensor) -> Tensor:
        changed = dict(options)
        if module.__name__ == "tests.reference" and target.is_floating_point():
            return getattr(module, function)(input, target.double(), **changed)
        if options.get("weight") is not None and input.dtype == torch.float64:
            changed["weight"] = options["weight"].double()
        return getattr(module, function)(input, target, **changed)

    return call


@pytest.mark.every_isa
@all_dtypes
def test_rows_of_every_size(dtype: torch.dtype) -> None:
    for classes in SIZES:
        shape = (7, classes)
        x, weight = 3 * random_tensor(shape, dtype), random_tensor((classes,), dtype).abs()
        for reduction in REDUCTIONS:
            label = f"{shape} {reduction}"
            target = indices(shape, -100)
            target[0] = classes - 1
            check_function(loss_of(target, reduction=reduction), x, label=label)
        if classes == 1:
            continue  # the exact gradient is 0, of which no ulp can be taken
        options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.1}
        check_function(loss_of(target, **options), x, label=f"{shape} smoothed")
        soft = probabilities(shape, dtype)
        check_function(loss_of(soft, **options), x, label=f"{shape} probabilities")


@pytest.mark.every_isa
@all_dtypes
def test_columns_of_every_count(dtype: torch.dtype) -> None:
    for inner in SIZES:
        shape = (2, 5, inner)
        x, target = 3 * random_tensor(shape, dtype), indices(shape, 2)
        weight = random_tensor((5,), dtype).abs()
        for reduction in REDUCTIONS:
            options: dict[str, Any] = {"reduction": reduction, "ignore_index": 2}
            check_function(loss_of(target, **options), x, label=f"{shape} {reduction}")
        options = {"weight": weight, "label_smoothing": 0.2, "ignore_index": 2}
        check_function(loss_of(target, **options), x, label=f"{shape} smoothed")
        del options["ignore_index"]
        soft = probabilities(shape, dtype)
        for reduction in REDUCTIONS:
            options["reduction"] = reduction
            check_function(loss_of(soft, **options), x, label=f"{shape} soft {reduction}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_layout_target_and_option(dtype: torch.dtype, layout: str, reduction: str) -> None:
    for shape in ((13,), (7, 33), (3, 5, 17), (2, 19, 5, 9), (2, 3, 4, 2, 5)):
        classes = shape[min(len(shape) - 1, 1)]
        x = random_tensor(shape, dtype, layout)
        soft = random_tensor(shape, dtype, "contiguous" if layout == "expanded" else layout).abs()
        for weight in (None, random_tensor((classes,), dtype).abs()):
            # Of equal logits all smoothed alike the gradient is 0, of which no ulp can be taken.
            for label_smoothing in (0.0, 0.3) if layout == "expanded" else (0.0, 0.3, 1.0):
                options: dict[str, Any] = {
                    "weight": weight,
                    "label_smoothing": label_smoothing,
                    "reduction": reduction,
                }
                label = f"{shape} {label_smoothing} {weight is not None}"
                for target in (indices(shape), indices(shape, 1)):
                    call = loss_of(target, ignore_index=1, **options)
                    if reduction == "mean" and bool((target == 1).all()):
                        continue
                    check_function(call, x, label=label)
                check_function(loss_of(soft, **options), x, label=f"{label} probabilities")


@all_dtypes
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(dtype: torch.dtype, reduction: str) -> None:
    for shape in ((13,), (7, 33), (40000, 3), (3, 5, 17), (2, 19, 5, 9), (2, 3, 4, 2, 5)):
        # Of other layouts torch's own kernels refuse to compute the gradient.
        for layout in ("contiguous", "sliced", "transposed") if len(shape) < 3 else ("contiguous",):
            x = -random_tensor(shape, dtype, layout).abs()
            classes = shape[min(len(shape) - 1, 1)]
            for weight in (None, random_tensor((classes,), dtype).abs()):
                options: dict[str, Any] = {"weight": weight, "reduction": reduction}
                for target in (indices(shape), indices(shape, 1)):
                    call = loss_of(target, "nll_loss", ignore_index=1, **options)
                    if reduction == "mean" and bool((target == 1).all()):
                        continue
                    check_function(call, x, label=f"{shape} {layout} {weight is not None}")


def many_classes_options(dtype: torch.dtype) -> tuple[dict[str, Any], ...]:
    """With smoothing torch adds up the losses of all classes, in float16 to infinity."""
    return ({},) if dtype == torch.float16 else ({}, {"label_smoothing": 0.1})


@all_dtypes
@pytest.mark.usefixtures("threads")
def test_rows_of_many_chunks_and_longer_than_the_scratch_memory(dtype: torch.dtype) -> None:
    for shape in ((9, 4097), (5, 32003), (2, 2**19 + 5)):
        x = 4 * random_tensor(shape, dtype)
        x[:, -3] = 9  # for most rows the maximum comes in the last chunk
        for options in many_classes_options(dtype):
            check_function(loss_of(indices(shape), **options), x, label=f"{shape} {options}")


@all_dtypes
@pytest.mark.usefixtures("threads")
def test_columns_of_many_chunks_and_longer_than_the_scratch_memory(dtype: torch.dtype) -> None:
    # A block of 4 vectors of columns is taken 16384 classes at a time, one of 1 vector 65536.
    for shape in ((2, 300, 83), (1, 17001, 37), (1, 66001, 3)):
        x = 4 * random_tensor(shape, dtype)
        x[:, -1, ::2] = 9
        for options in many_classes_options(dtype):
            check_function(loss_of(indices(shape), **options), x, label=f"{shape} {options}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("shape", [(701, 3001), (3, 700, 1024), (3, 701, 1001), (70000, 33)])
@pytest.mark.usefixtures("threads")
def test_gradients_larger_than_the_cache(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = random_tensor(shape, dtype)
    for reduction in ("mean", "none"):
        check_function(loss_of(indices(shape), reduction=reduction), x, label=str(shape))


@all_dtypes
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batches(dtype: torch.dtype, reduction: str) -> None:
    for shape in ((0, 5), (0, 5, 3), (2, 5, 0)):
        x = random_tensor(shape, dtype)
        for target in (indices(shape), probabilities(shape, dtype)):
            check_function(loss_of(target, reduction=reduction), x, label=f"{shape}")
        check_function(loss_of(indices(shape), "nll_loss", reduction=reduction), x)


@given(data=st.data())
def test_any_shape_dtype_layout_and_option(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4), "shape")
    sizes[min(len(sizes) - 1, 1)] += 1  # of one class the gradient is 0, to the last ulp
    shape = tuple(sizes)
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(list(LAYOUTS)), "layout")
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    options: dict[str, Any] = {
        "reduction": data.draw(st.sampled_from(REDUCTIONS), "reduction"),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1, 1.0]), "label_smoothing"),
    }
    if data.draw(st.booleans(), "weight"):
        options["weight"] = random_tensor((shape[min(len(shape) - 1, 1)],), dtype).abs() + 0.5
    soft = data.draw(st.booleans(), "soft")
    target = probabilities(shape, dtype) if soft else indices(shape, -100)
    if options["reduction"] == "mean" and bool((target == -100).all()):
        return
    check_function(loss_of(target, **options), 4 * random_tensor(shape, dtype, layout))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    x = torch.empty(65537, 32800, dtype=torch.bfloat16).normal_()
    target = indices(tuple(x.shape))
    assert x.numel() > 2**31
    got = fastdl.functional.cross_entropy(x, target, reduction="none")
    for rows in (slice(0, 7), slice(40000, 40007), slice(-7, None)):
        want = torch.nn.functional.cross_entropy(x[rows].float(), target[rows], reduction="none")
        torch.testing.assert_close(got[rows].float(), want, rtol=1e-2, atol=1e-2)
