"""linear_cross_entropy: values, gradients and memory next to torch's linear and cross_entropy."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import Call, check_function
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name, random_tensor
from tests.test_cross_entropy import REDUCTIONS, indices, loss_of, probabilities

native = torch.nn.functional
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
needs_native = pytest.mark.skipif(
    not hasattr(native, "linear_cross_entropy"), reason="this version of torch has it not"
)


def linear_loss(target: Tensor, **options: Any) -> Call:
    """fastdl's function, or the two of the other modules."""

    def call(module: ModuleType, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        if module is fastdl.functional:
            return module.linear_cross_entropy(x, matrix, target, linear_bias=bias, **options)
        logits = native.linear(x, matrix, bias)
        return loss_of(target, **options)(module, logits)

    return call


def tensors(dtype: torch.dtype, rows: int, classes: int, features: int = 8) -> list[Tensor]:
    shapes = ((rows, features), (classes, features), (classes,))
    return [random_tensor(shape, dtype) for shape in shapes]


@pytest.mark.every_isa
@all_dtypes
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients(dtype: torch.dtype, reduction: str) -> None:
    for rows, classes in ((1, 7), (37, 33), (130, 1000)):
        x, matrix, bias = tensors(dtype, rows, classes)
        target = indices((rows, classes), -100)
        target[0] = classes - 1
        weight = random_tensor((classes,), dtype).abs() + 0.1
        call = linear_loss(target, reduction=reduction)
        check_function(call, x, matrix, bias, label=f"{rows} x {classes}")
        check_function(call, x, matrix, label=f"{rows} x {classes} without bias")
        if dtype == torch.float16 and classes == 1000:
            continue  # with smoothing torch adds up the losses of all classes, to infinity
        call = linear_loss(target, reduction=reduction, weight=weight, label_smoothing=0.1)
        check_function(call, x, matrix, bias, label=f"{rows} x {classes} smoothed")
        soft = probabilities((rows, classes), dtype)
        call = linear_loss(soft, reduction=reduction, weight=weight)
        check_function(call, x, matrix, bias, label=f"{rows} x {classes} probabilities")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_chunks(reduction: str) -> None:
    x, matrix, bias = tensors(torch.float32, 260, 70001, 4)  # a chunk has 192 rows at most
    target = indices((260, 70001), -100)
    check_function(linear_loss(target, reduction=reduction), x, matrix, bias)


@pytest.mark.every_isa
@all_dtypes
def test_only_some_gradients(dtype: torch.dtype) -> None:
    target = indices((9, 33))
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.requires_grad_(w) for t, w in zip(tensors(dtype, 9, 33), wanted, strict=True)]
        call = linear_loss(target)
        loss = call(fastdl.functional, *leaves)
        loss.backward()
        others = [t.detach().clone().requires_grad_() for t in leaves]
        call(native, *others).backward()
        for leaf, other, want in zip(leaves, others, wanted, strict=True):
            assert (leaf.grad is not None) == want
            if want:
                torch.testing.assert_close(leaf.grad, other.grad, rtol=2e-2, atol=2e-3)


def test_second_derivatives() -> None:
    x, matrix, bias = (t.requires_grad_() for t in tensors(torch.float64, 5, 7))
    for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.2, "reduction": "sum"}):
        call = linear_loss(indices((5, 7), -100), **options)
        arguments = (x, matrix, bias)
        assert torch.autograd.gradcheck(lambda *t: call(fastdl.functional, *t), arguments)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda *t: call(fastdl.functional, *t), arguments)  # noqa: B023


def test_graph_can_be_kept() -> None:
    leaves = [t.requires_grad_() for t in tensors(torch.float32, 5, 7)]
    loss = linear_loss(indices((5, 7)))(fastdl.functional, *leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    double = torch.autograd.grad(2 * loss, leaves, retain_graph=True)
    last = torch.autograd.grad(loss, leaves)
    for one, two, three in zip(first, double, last, strict=True):
        torch.testing.assert_close(2 * one, two)
        torch.testing.assert_close(one, three, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.cpu_only("on a GPU the kernel stops, as torch's own")
def test_targets_out_of_bounds_raise() -> None:
    x, matrix, bias = tensors(torch.float32, 5, 7)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        fastdl.functional.linear_cross_entropy(x, matrix, torch.full((5,), 7), linear_bias=bias)


@needs_native
def test_other_arguments_give_the_outcome_of_torch() -> None:
    x, matrix, bias = tensors(torch.float32, 5, 7)
    target, soft = indices((5, 7)), probabilities((5, 7), torch.float32)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x[0], matrix, target[0]), {}),
        ((x, matrix.reshape(7, 1, 8), target[:, None]), {}),
        ((x, matrix[:, :3], target), {}),
        ((x, matrix, target), {"linear_bias": bias[:3]}),
        ((x, matrix, soft), {"ignore_index": 3}),
        ((x, matrix, soft), {"ignore_index": -100}),
        ((x, matrix, target.int()), {}),
        ((x, matrix.double(), target), {}),
        ((x, matrix, target), {"label_smoothing": 2.0}),
        ((x, matrix, target), {"reduction": "average"}),
        ((x, matrix, target), {"options": nn.LinearCrossEntropyOptions(batch_chunk_size=2)}),
        ((x, matrix), {}),
    ]
    for arguments, options in calls:
        assert_same_outcome(
            lambda: fastdl.functional.linear_cross_entropy(*arguments, **options),  # noqa: B023
            lambda: native.linear_cross_entropy(*arguments, **options),  # noqa: B023
            f"{options}",
            warnings=False,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_autocast_takes_products_in_its_dtype_and_the_loss_in_float32(dtype: torch.dtype) -> None:
    leaves = [t.requires_grad_() for t in tensors(dtype, 64, 33)]
    call = linear_loss(indices((64, 33)))
    results = []
    for module in (fastdl.functional, native):
        with torch.autocast("cpu", torch.bfloat16), fastdl.strict():
            loss = call(module, *leaves)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    assert results[0][0].dtype == results[1][0].dtype == torch.float32
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-3)


MEASURE = """
import sys, torch, fastdl
def most():  # ru_maxrss would begin with that of the parent
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])
F = torch.nn.functional
x = torch.randn(1024, 16, requires_grad=True)
matrix = torch.randn(32000, 16, requires_grad=True)
target = torch.randint(0, 32000, (1024,))
before = most()
if sys.argv[1] == "fastdl":
    fastdl.functional.linear_cross_entropy(x, matrix, target).backward()
else:
    F.cross_entropy(F.linear(x, matrix), target).backward()
print(most() - before)
"""


@pytest.mark.cpu_only("measures the memory of the process")
def test_memory_is_less_than_half_of_that_of_linear_and_cross_entropy() -> None:
    kilobytes = {
        which: int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, which], check=True, capture_output=True, text=True
            ).stdout
        )
        for which in ("fastdl", "torch")
    }
    assert kilobytes["fastdl"] < kilobytes["torch"] / 2
