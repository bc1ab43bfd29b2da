"""batch_norm and batch_norm_relu: values, gradients and running statistics next to torch's."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from tests import reference
from tests.cases import copies, running_statistics
from tests.compare import (
    Call,
    assert_as_accurate_as_torch,
    assert_same_bits,
    assert_same_metadata,
    check_function,
)
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, REDUCED_DTYPES, dtype_name, random_tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
training_or_not = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
with_relu = pytest.mark.parametrize("relu", ["", "relu", "residual"])

# (batch, channels, *space): each tail of a vector, planes in and beyond a chunk of 2048, few and
# many channels, of which rows take several at once, and more than a tile has
SHAPES = [
    (5, 3), (64, 3), (33, 70), (9, 1031), (3, 2, 5), (7, 3, 1), (6, 5, 2, 2), (4, 7, 7, 7),
    (3, 5, 4, 16), (2, 3, 47, 45), (2, 2, 1, 4099), (1, 2, 3, 3), (2, 3, 2, 3, 4), (2, 600, 3, 2),
]  # fmt: skip


def calls(module: ModuleType, name: str) -> Any:
    """The function of this module; torch has no batch_norm_relu."""
    if module is F and name == "batch_norm_relu":
        return native_batch_norm_relu
    return getattr(module, name)


def native_batch_norm_relu(*arguments: Any, residual: Tensor | None = None) -> Tensor:
    output = F.batch_norm(*arguments)
    return F.relu(output if residual is None else output + residual)


def call_of(relu: str, training: bool, eps: float = 1e-5) -> Call:
    """With running statistics of the parameters' type, which the call may change."""

    def call(module: ModuleType, x: Tensor, w: Tensor | None, b: Tensor | None, *r: Tensor) -> Any:
        like = (x if w is None else w).new_empty(x.shape[1])
        arguments = (x, *running_statistics(like), w, b, training, 0.1, eps)
        if not relu:
            return module.batch_norm(*arguments)
        options = {"residual": r[0]} if r else {}
        return calls(module, "batch_norm_relu")(*arguments, **options)

    return call


def spread(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    """Values whose variance is about 1 in each channel, however few there are."""
    values = torch.rand(shape, dtype=torch.float64) - 0.5
    signs = torch.arange(math.prod(shape) // shape[1]).remainder(2) * 2 - 1
    values += signs.reshape((*shape[:1], 1, *shape[2:]))
    return LAYOUTS[layout](values.to(dtype))


def check(
    shape: tuple[int, ...], dtype: torch.dtype, relu: str, training: bool, layout: str, **kw: Any
) -> None:
    parameters = kw.pop("parameters", dtype)
    weight = bias = None
    if parameters is not None:
        weight, bias = (random_tensor(shape[1:2], parameters) for _ in range(2))
    residual = [random_tensor(shape, dtype, layout)] if relu == "residual" else []
    x = spread(shape, dtype, layout)
    label = f"{shape} {layout}"
    check_function(call_of(relu, training, kw.pop("eps", 1e-5)), x, weight, bias, *residual,
                   label=label, **kw)  # fmt: skip


@pytest.mark.every_isa
@all_dtypes
@training_or_not
@with_relu
def test_every_shape_channels_first_and_last(dtype: torch.dtype, training: bool, relu: str) -> None:
    for shape in SHAPES:
        for layout in ("contiguous", "channels_last") if len(shape) > 3 else ("contiguous",):
            check(shape, dtype, relu, training, layout)


@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
@training_or_not
def test_16_bit_input_with_float32_parameters(dtype: torch.dtype, training: bool) -> None:
    for relu, layout in itertools.product(("", "relu"), ("contiguous", "channels_last")):
        check((4, 7, 5, 6), dtype, relu, training, layout, parameters=torch.float32)


@all_dtypes
@training_or_not
def test_an_eps_that_counts_as_much_as_the_variance(dtype: torch.dtype, training: bool) -> None:
    for relu, layout in itertools.product(("", "relu"), ("contiguous", "channels_last")):
        check((4, 7, 5, 6), dtype, relu, training, layout, eps=0.1)


@training_or_not
@with_relu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(training: bool, relu: str, layout: str) -> None:
    for shape in ((6, 5), (4, 3, 9), (4, 3, 5, 7)):
        if layout == "expanded" and training:
            continue  # a batch of equal samples is in test_values_that_are_all_equal
        check(shape, torch.float32, relu, training, layout, parameters=None)
        grad = random_tensor(shape, torch.float32, layout)
        check(shape, torch.float32, relu, training, "contiguous", grad_output=grad)
        check(shape, torch.float32, relu, training, "channels_last", grad_output=grad)


@pytest.mark.usefixtures("threads")
@training_or_not
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 1, 512, 700), (9, 2, 200, 200), (40, 24, 60, 60)], ids=str)
def test_large_tensors(training: bool, layout: str, shape: tuple[int, ...]) -> None:
    check(shape, torch.float32, "residual", training, layout)


@all_dtypes
@training_or_not
@with_relu
@pytest.mark.parametrize("which", list(itertools.product((False, True), repeat=3)), ids=str)
def test_each_choice_of_wanted_gradients(
    dtype: torch.dtype, training: bool, relu: str, which: tuple[bool, ...]
) -> None:
    values = [spread((5, 3, 7), dtype), random_tensor((3,), dtype), random_tensor((3,), dtype)]
    values += [random_tensor((5, 3, 7), dtype)] * (relu == "residual")
    wanted = [*which, *[which[0] != which[1]] * (relu == "residual")]
    if not any(wanted):
        return
    results = []
    for module in (fastdl.functional, F, reference):
        leaves = copies([v.double() for v in values] if module is reference else values)
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(want)
        output = call_of(relu, training)(module, *leaves)
        output.backward(torch.linspace(-1, 2, 105).reshape(5, 3, 7).to(output.dtype))
        results.append([leaf.grad for leaf in leaves])
    for fast, native, exact, want in zip(*results, wanted, strict=True):
        assert (fast is not None) == (native is not None) == want
        if want:
            assert_as_accurate_as_torch(fast, native, exact, gradient=True)


@all_dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37])
def test_running_statistics_move_once_and_in_place(dtype: torch.dtype, momentum: float) -> None:
    for shape, layout in itertools.product([(7, 5), (4, 5, 6, 3)], ("contiguous", "channels_last")):
        x = spread(shape, dtype, layout)
        results = []
        for function in (fastdl.functional.batch_norm, F.batch_norm):
            mean, var = running_statistics(x.new_empty(5))
            versions, addresses = (mean._version, var._version), (mean.data_ptr(), var.data_ptr())
            for _ in range(2):
                function(x, mean, var, None, None, True, momentum)
            assert (mean._version, var._version) == versions  # as with torch
            assert (mean.data_ptr(), var.data_ptr()) == addresses
            results.append((mean, var))
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    fused = running_statistics(x.new_empty(5))
    for _ in range(2):
        fastdl.functional.batch_norm_relu(x, *fused, None, None, True, momentum)
    assert_same_bits(fused[0], results[0][0])
    assert_same_bits(fused[1], results[0][1])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_modules_over_several_batches(momentum: float | None, affine: bool, track: bool) -> None:
    results = []
    for package in (fastdl.nn, nn):
        torch.manual_seed(5)
        module = package.BatchNorm2d(6, 1e-3, momentum, affine, track)
        outputs = [module(torch.randn(4, 6, 5, 5) + batch) for batch in range(3)]
        module.eval()
        outputs.append(module(torch.randn(2, 6, 3, 3)))
        module.track_running_stats = not track  # what torch then does is odd, and the same
        outputs.append(module(torch.randn(2, 6, 3, 3)))
        results.append([*outputs, *module.state_dict().values()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_far_from_zero_costs_the_running_variance_no_digits(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(8, 3, 50, 50, dtype=torch.float64).mul(0.01).add(1000).float())
    var = torch.ones(3)
    fastdl.functional.batch_norm(x, torch.zeros(3), var, training=True, momentum=1.0)
    exact = x.double().transpose(0, 1).reshape(3, -1).var(1)
    torch.testing.assert_close(var.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_number_of_threads_changes_no_bit(layout: str) -> None:
    # Channels in parts: one after another by one thread, all at once by three
    leaves = [spread((6, 4, 210, 220), torch.float32, layout), *torch.randn(2, 4)]
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        own = copies([leaf.requires_grad_() for leaf in leaves])
        output = call_of("relu", True)(fastdl.functional, *own)
        results.append([output, *torch.autograd.grad(output.sin().sum(), own)])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("relu", ["relu", "residual"])
@training_or_not
def test_second_derivatives_of_the_fused_form(relu: str, training: bool) -> None:
    leaves = [spread((3, 2, 4), torch.float64), *torch.randn(2, 2, dtype=torch.float64)]
    leaves += [torch.randn(3, 2, 4, dtype=torch.float64)] * (relu == "residual")
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def call(*tensors: Tensor) -> Tensor:
        return call_of(relu, training)(fastdl.functional, *tensors)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@training_or_not
def test_an_infinite_gradient_does_not_pass_a_closed_relu(training: bool) -> None:
    x = spread((6, 3, 5), torch.float64).requires_grad_()
    output = call_of("relu", training)(fastdl.functional, x, None, None)
    grad = torch.where(output > 0, 0.5, math.inf)
    (expected,) = torch.autograd.grad(output, x, grad, retain_graph=True)
    (again,) = torch.autograd.grad(output, x, grad, create_graph=True)
    assert expected.isfinite().all()
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_symbolic_trace_counts_batches_when_it_runs(momentum: float | None) -> None:
    results = []
    for package in (fastdl.nn, nn):
        model = nn.Sequential(package.BatchNorm2d(3, momentum=momentum), nn.ReLU())
        before = [value.clone() for value in model.state_dict().values()]
        traced = torch.fx.symbolic_trace(model)
        for value, copy in zip(model.state_dict().values(), before, strict=True):
            assert_same_bits(value, copy)
        torch.manual_seed(3)
        outputs = [traced(torch.randn(4, 3, 5, 5) + batch) for batch in range(3)]
        outputs.append(traced.eval()(torch.randn(2, 3, 4, 4)))
        results.append([*outputs, *traced.state_dict().values()])
    torch.testing.assert_close(*results)


def test_a_symbolic_trace_of_the_module_alone_is_refused_as_by_torch() -> None:
    outcome = assert_same_outcome(
        lambda: torch.fx.symbolic_trace(fastdl.nn.BatchNorm2d(3)),
        lambda: torch.fx.symbolic_trace(nn.BatchNorm2d(3)),
    )
    assert outcome.error is not None


def test_what_the_fused_form_cannot_take_is_computed_apart() -> None:
    x, residual = torch.randn(4, 3, 5, 5), torch.randn(1, 3, 1, 1)
    output = fastdl.functional.batch_norm_relu(x, None, None, training=True, residual=residual)
    assert_same_metadata(output, x)
    native = native_batch_norm_relu(x, None, None, None, None, True, residual=residual)
    assert_same_bits(output, native)
    assert [op for op, _, _ in fastdl.report().hand_overs] == ["batch_norm_relu"]


WRONG: dict[str, tuple[Any, ...]] = {
    "one value per channel": (torch.ones(1, 3), None, None, None, None, True),
    "one value per channel of an image": (torch.ones(1, 3, 1, 1), None, None, None, None, True),
    "no running statistics": (torch.ones(2, 3), None, None),
    "one running statistic": (torch.ones(2, 3), torch.ones(3), None, None, None, True),
    "one dimension": (torch.ones(3), torch.ones(3), torch.ones(3)),
    "other channels": (torch.ones(2, 3), torch.ones(4), torch.ones(3)),
    "other weight": (torch.ones(2, 3), None, None, torch.ones(2), None, True),
    "other bias": (torch.ones(2, 3), None, None, None, torch.ones(2), True),
    "weight of two dimensions": (torch.ones(2, 3), None, None, torch.ones(3, 1), None, True),
    "another dtype": (torch.ones(2, 3), torch.zeros(3).double(), torch.ones(3).double()),
    "training is no bool": (torch.ones(2, 3), None, None, None, None, 1),
    "momentum None": (torch.ones(2, 3), None, None, None, None, True, None),
    "eps 0 in training": (torch.ones(2, 3), None, None, None, None, True, 0.1, 0.0),
    "eps 0": (torch.ones(2, 3), torch.zeros(3), torch.ones(3), None, None, False, 0.1, 0.0),
    "negative eps": (torch.ones(2, 3), torch.zeros(3), torch.ones(3), None, None, False, 0.1, -1.0),
    "running statistics with gradients": (
        torch.ones(2, 3), torch.zeros(3, requires_grad=True), torch.ones(3),
    ),
    "empty batch": (torch.ones(0, 3, 4), torch.zeros(3), torch.ones(3)),
    "empty space": (torch.ones(2, 3, 0), torch.zeros(3), torch.ones(3), None, None, True),
    "integers": (torch.ones(2, 3, dtype=torch.int64), torch.zeros(3), torch.ones(3)),
    "complex": (torch.ones(2, 3, dtype=torch.complex64), None, None, None, None, True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_unusual_arguments_have_the_outcome_of_torch(name: str) -> None:
    assert_same_outcome(
        lambda: fastdl.functional.batch_norm(*WRONG[name]), lambda: F.batch_norm(*WRONG[name])
    )
    assert_same_outcome(
        lambda: fastdl.functional.batch_norm_relu(*WRONG[name]),
        lambda: native_batch_norm_relu(*WRONG[name]),
    )


def test_inputs_of_wrong_dimensions_of_modules() -> None:
    wrong = {"BatchNorm1d": (2, 3, 4, 5), "BatchNorm2d": (2, 3), "BatchNorm3d": (2, 3, 4)}
    for name, shape in wrong.items():
        x = torch.randn(shape)
        outcome = assert_same_outcome(
            lambda: getattr(fastdl.nn, name)(3)(x),  # noqa: B023
            lambda: getattr(nn, name)(3)(x),  # noqa: B023
        )
        assert outcome.error is not None
