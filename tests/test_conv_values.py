"""Convolution of special values and of nothing; what torch must judge; memory; compilers."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, func

import fastdl
from fastdl import _C
from tests.compare import assert_same_bits, assert_same_metadata
from tests.conv_calls import conv, tensors_of
from tests.outcome import assert_same_outcome
from tests.tensors import dtype_name, random_tensor

both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
float_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name
)


@pytest.mark.every_isa
@float_dtypes
@both_formats
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_are_where_torch_has_them(
    value: float, layout: str, dtype: torch.dtype
) -> None:
    for kernel, stride, padding, shape in (
        (1, 1, 0, (2, 9, 20, 1, 7, 8)),
        (3, 2, 1, (2, 9, 20, 1, 8, 9)),
        (3, 1, 1, (2, 17, 9, 1, 9, 10)),
        (5, 1, 2, (1, 1, 1, 9, 9, 11)),
    ):
        x, weight, bias = tensors_of(shape, kernel, dtype, layout)
        x[-1, 4, 3, 5] = value
        call = conv("conv2d", stride, padding, 1, shape[3])
        with fastdl.allow_winograd(False):
            output = call(fastdl.functional, x, weight, bias)
        native = call(torch.nn.functional, x, weight, bias)
        torch.testing.assert_close(output, native, equal_nan=True, rtol=2e-2, atol=2e-2)
        assert_same_bits(output.isnan(), native.isnan())


@both_formats
def test_relu_keeps_nan_and_stops_infinities(layout: str) -> None:
    x, weight, bias = tensors_of((2, 9, 20, 1, 7, 8), 1, torch.float32, layout)
    x[0, 1, 2, 3], x[1, 2, 3, 4] = math.nan, math.inf
    output = fastdl.functional.conv2d_relu(x, weight, bias)
    native = torch.nn.functional.conv2d(x, weight, bias).relu()
    torch.testing.assert_close(output, native, equal_nan=True)


X = torch.linspace(-2, 2, 2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
WEIGHT = torch.linspace(-1, 1, 6 * 4 * 3 * 3).reshape(6, 4, 3, 3)
# Behind input and weight
ARGUMENTS: list[tuple[Any, ...]] = [
    (torch.ones(5),), (torch.ones(6, 1),), (torch.ones(()),), (torch.ones(6).double(),), ("bias",),
    (None, 0), (None, -1), (None, (1, 2, 3)), (None, ()), (None, "1"), (None, 2.0), (None, None),
    (None, True), (None, [2]), (None, (2, None)), (None, torch.tensor(2)), (None, 2**70),
    (None, 1, -1), (None, 1, (1, 2, 3)), (None, 1, "same"), (None, 2, "same"), (None, 1, "valid"),
    (None, 1, "full"), (None, 1, ""), (None, 1, 1.5), (None, 1, None), (None, 1, (0, -1)),
    (None, 1, 0, 0), (None, 1, 0, -1), (None, 1, 0, 3), (None, 1, 0, 4), (None, 1, 0, (1, 2, 3)),
    (None, 1, 0, 1, 2), (None, 1, 0, 1, 0), (None, 1, 0, 1, -1), (None, 1, 0, 1, 4),
    (None, 1, 0, 1, 3), (None, 1, 0, 1, 1.0), (None, 1, 0, 1, None), (None, 1, 2**40),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=repr)
def test_wrong_and_unusual_arguments_have_the_outcome_of_torch(arguments: tuple[Any, ...]) -> None:
    for x, weight, name in ((X, WEIGHT, "conv2d"), (X.flatten(2), WEIGHT[..., 0], "conv1d")):
        assert_same_outcome(
            lambda: getattr(fastdl.functional, name)(x, weight, *arguments),  # noqa: B023
            lambda: getattr(torch.nn.functional, name)(x, weight, *arguments),  # noqa: B023
            f"{name}{arguments}",
            warnings=False,
        )


SIZES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), (6, 4, 3, 3)), ((4,), (6, 4, 3, 3)), ((4, 6), (6, 4, 3, 3)), ((4, 6, 8), (6, 4, 3, 3)),
    ((1, 2, 4, 6, 8), (6, 4, 3, 3)), ((2, 4, 6, 8), (6, 4, 3)), ((2, 4, 6, 8), (6, 4)),
    ((2, 5, 6, 8), (6, 4, 3, 3)), ((2, 4, 2, 8), (6, 4, 3, 3)), ((2, 4, 6, 8), (6, 4, 7, 3)),
    ((0, 4, 6, 8), (6, 4, 3, 3)), ((2, 0, 6, 8), (6, 0, 3, 3)), ((2, 4, 0, 8), (6, 4, 3, 3)),
    ((2, 4, 6, 8), (0, 4, 3, 3)), ((2, 4, 6, 8), (6, 4, 0, 3)), ((2, 4, 6, 8), (6, 4, 3, 3, 3)),
    ((2, 4, 6), (6, 4, 3)), ((4, 6), (6, 4, 3)), ((2, 4), (6, 4, 3, 3)), ((4, 0), (6, 4, 1)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("size", "weight"), SIZES, ids=str)
def test_wrong_ranks_and_empty_tensors_have_the_outcome_of_torch(
    size: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    for name in ("conv1d", "conv2d"):
        assert_same_outcome(
            lambda: getattr(fastdl.functional, name)(torch.ones(size), torch.ones(weight)),  # noqa: B023
            lambda: getattr(torch.nn.functional, name)(torch.ones(size), torch.ones(weight)),  # noqa: B023
            f"{name} {size} {weight}",
            warnings=False,
        )


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_do_not_go_together_have_the_outcome_of_torch() -> None:
    for arguments in (
        (X.double(), WEIGHT),
        (X.bfloat16(), WEIGHT),
        (X, WEIGHT.half()),
        (X, WEIGHT, torch.ones(6).bfloat16()),
        (X.int(), WEIGHT.int()),
        (X.to(torch.complex64), WEIGHT.to(torch.complex64)),
        (X.to_sparse(), WEIGHT),
        ([1.0], WEIGHT),
        (X, None),
    ):
        assert_same_outcome(
            lambda: fastdl.functional.conv2d(*arguments),  # type: ignore[arg-type]  # noqa: B023
            lambda: torch.nn.functional.conv2d(*arguments),  # type: ignore[arg-type]  # noqa: B023
            warnings=False,
        )


def test_an_empty_batch_and_float64_are_native() -> None:
    assert fastdl.functional.conv2d(X[:0], WEIGHT).shape == (0, 6, 4, 6)
    fastdl.functional.conv2d(X.double(), WEIGHT.double())
    reasons = {reason for _, reason, _ in fastdl.report().hand_overs}
    assert len(reasons) == 2 and "no kernel for float64" in reasons


@pytest.mark.cpu_only("the choice by the CPU's speed")
def test_what_native_torch_computes_faster_is_handed_over_whole_or_by_direction() -> None:
    _C.always_use_conv_kernels(False)
    x, weight, _ = tensors_of((1, 3, 64, 1, 100, 100), 3, torch.float32, "channels_last")
    fastdl.functional.conv2d(x, weight, padding=1)
    assert fastdl.report().hand_overs == [("conv2d", "native torch is faster here", 1)]
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        output = module.conv2d(*leaves, padding=1)
        results.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
def test_modules_pad_as_torch_does(name: str) -> None:
    kind, x = name.replace("c", "C", 1), X if name == "conv2d" else X.flatten(2)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        for padding in (1, "same", "valid"):
            options = {"kernel_size": 3, "padding": padding, "padding_mode": mode}
            native = getattr(torch.nn, kind)(4, 5, **options)
            fast = fastdl.convert(getattr(torch.nn, kind)(4, 5, **options))
            fast.load_state_dict(native.state_dict())
            torch.testing.assert_close(fast(x), native(x), rtol=1e-4, atol=1e-5)
            assert repr(fast) == repr(native)


def test_other_tensors_in_the_place_of_a_modules_weight() -> None:
    module = fastdl.convert(torch.nn.Conv2d(4, 5, 3))
    weight = torch.randn(5, 4, 3, 3)
    output = func.functional_call(module, {"weight": weight}, (X,))
    expected = torch.nn.functional.conv2d(X, weight, module.bias)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    torch.nn.utils.parametrizations.weight_norm(module)
    torch.testing.assert_close(module(X), torch.nn.Conv2d.forward(module, X), rtol=1e-4, atol=1e-4)


NUMBERS: list[Any] = [[1, 1], [1, 1, 1, 1], [1, 1], 1, False, True]


def test_the_registered_op_under_transforms_is_native() -> None:
    op = torch.ops.fastdl.convolution

    def fast(x: Tensor, weight: Tensor) -> Tensor:
        return op(x, weight, None, None, *NUMBERS)

    def native(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, None, 1, 1)

    batched = torch.stack([X, X + 1, X * 2])
    for use in (
        lambda f: func.vmap(f, (0, None))(batched, WEIGHT),
        lambda f: func.grad(lambda w: f(X, w).sin().sum())(WEIGHT),
        lambda f: func.vmap(func.grad(lambda x, w: f(x, w).sum()), (0, None))(batched, WEIGHT),
    ):
        torch.testing.assert_close(use(fast), use(native), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@both_formats
def test_compiled_training_gives_the_gradients_of_eager(layout: str, dynamic: bool) -> None:
    torch.compiler.reset()

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = fastdl.functional.conv2d(x, weight, bias, padding="same").sigmoid()
        return fastdl.functional.conv2d_relu(y, weight[:, :, :2], None, 2, 1, 1, 1, None).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (9, 12):
        x, weight, bias = tensors_of((2, 5, 5, 1, size, size + 1), 3, torch.float32, layout)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        for autocast in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                results = [
                    [y, *torch.autograd.grad(y, leaves)]
                    for y in (call(*leaves) for call in (compiled, step))
                ]
            for one, other in zip(*results, strict=True):
                assert_same_metadata(one, other, strides=False)
                tolerance = 5e-2 if autocast else 1e-4
                torch.testing.assert_close(one, other, rtol=tolerance, atol=20 * tolerance)


def test_compiled_functions_raise_torchs_errors() -> None:
    torch.compiler.reset()
    compiled = torch.compile(fastdl.functional.conv2d, backend="aot_eager")
    for arguments in ((X, WEIGHT[:, :3]), (X[0, 0], WEIGHT), (X, WEIGHT, None, 0)):
        with pytest.raises(RuntimeError):
            compiled(*arguments)


@pytest.mark.cpu_only("the allocator of torch asks the system there")
def test_native_torch_computes_where_memory_for_a_workspace_is_missing() -> None:
    code = """
import resource, torch, fastdl
fastdl._C.always_use_conv_kernels(True)
torch.set_num_threads(1)
x, weight = torch.randn(1, 512, 5, 5), torch.randn(1 << 14, 512, 3, 3)
with torch.no_grad():
    native = torch.nn.functional.conv2d(x, weight)
    torch.testing.assert_close(native, native)  # imports what it needs
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    # Room for the output, not for a weight of 302 MB in the order of a kernel.
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
    output = fastdl.functional.conv2d(x, weight)
torch.testing.assert_close(output, native, rtol=1e-3, atol=1e-3)
print(fastdl.report().hand_overs)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "no memory" in result.stdout, result.stdout


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    x = torch.empty(2, 33, 5720, 5720, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    weight = random_tensor((4, 33, 3, 3), torch.bfloat16)
    output = fastdl.functional.conv2d(x, weight, stride=2)
    native = torch.nn.functional.conv2d(x[1:, :, -101:, -101:], weight, stride=2)
    torch.testing.assert_close(output[1:, :, -50:, -50:], native, rtol=2e-2, atol=0.5)
