"""Wrong and unusual arguments: the exception and message, or the result, of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import fastdl
from tests.outcome import Outcome, assert_same_outcome

SOFTMAX_FAMILY = ("softmax", "log_softmax", "softmin")
OWN = (  # torch has no such functions there
    "batch_norm_relu",
    "conv1d_add",
    "conv1d_relu",
    "conv2d_add",
    "conv2d_relu",
    "dropout_add_layer_norm",
    "varlen_attn",
)
X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)

all_softmax = pytest.mark.parametrize("function", SOFTMAX_FAMILY)


def same_outcome(function: str, *arguments: Any, **options: Any) -> Outcome:
    """Calls the function of fastdl and of torch, compares, and checks that no argument changed."""
    tensors = [v for v in (*arguments, *options.values()) if type(v) is Tensor and not v.is_meta]
    versions = [tensor._version for tensor in tensors]
    outcome = assert_same_outcome(
        lambda: getattr(fastdl.functional, function)(*arguments, **options),
        lambda: getattr(torch.nn.functional, function)(*arguments, **options),
        f"{function}{arguments}{options}",
        warnings=function != "rms_norm",  # some of torch's come once in a process only
    )
    assert [tensor._version for tensor in tensors] == versions
    return outcome


@all_softmax
@pytest.mark.parametrize("dim", [3, -4, 100, 2**63 - 1, -(2**63), 2**63, 2**70])
def test_dim_out_of_range(function: str, dim: int) -> None:
    assert same_outcome(function, X, dim).error is not None


@all_softmax
@pytest.mark.parametrize("dim", [1.0, "1", "C", [1], (0, 1), 1j, object, math.nan], ids=repr)
def test_dim_of_a_wrong_type(function: str, dim: Any) -> None:
    same_outcome(function, X, dim)


@all_softmax
@pytest.mark.parametrize(
    "dim", [True, numpy.int64(1), torch.tensor(1), torch.tensor([1]), torch.tensor(1.0)], ids=repr
)
def test_dim_that_torch_may_take_for_an_int(function: str, dim: Any) -> None:
    same_outcome(function, X, dim)


@all_softmax
def test_dim_left_out_gives_the_choice_and_the_warning_of_torch(function: str) -> None:
    for shape in ((), (4,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)):
        outcome = same_outcome(function, torch.randn(shape))
        assert "Implicit dimension choice" in outcome.warned[0][1]


@all_softmax
@pytest.mark.usefixtures("no_default_device")
def test_warning_about_dim_points_at_the_caller(function: str) -> None:
    with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
        getattr(fastdl.functional, function)(X)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmin"])
@pytest.mark.usefixtures("no_default_device")
def test_warning_about_dim_of_a_module_points_where_torch_points(name: str) -> None:
    lines = []
    for package in (fastdl.nn, torch.nn):
        with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
            getattr(package, name)()(X)
        lines.append((caught[0].filename, caught[0].lineno))
    assert lines[0] == lines[1]


@all_softmax
@pytest.mark.parametrize("value", [None, 3.0, "x", [1.0, 2.0], numpy.ones(3), object()], ids=type)
def test_input_that_is_no_tensor(function: str, value: Any) -> None:
    assert same_outcome(function, value, 0).error is not None


@all_softmax
@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.complex32],
)
def test_input_of_another_dtype(function: str, dtype: torch.dtype) -> None:
    same_outcome(function, X.to(dtype), 1)


@all_softmax
def test_every_dtype_argument(function: str) -> None:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32]
    for source in dtypes:
        for target in [*dtypes, torch.complex64, torch.bool]:
            same_outcome(function, X.to(source), 1, dtype=target)
    for wrong in ("float32", float, 6):
        same_outcome(function, X, 1, dtype=wrong)


@all_softmax
def test_wrong_number_and_names_of_arguments(function: str) -> None:
    for arguments, options in (
        ((), {}),
        ((X, 1, 3, torch.float32, 5), {}),
        ((X,), {"axis": 1}),
        ((X, 1), {"dim": 1}),
    ):
        names = same_outcome_of_signature(function, arguments, options)
        assert names is not None


def same_outcome_of_signature(
    function: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> BaseException | None:
    return assert_same_outcome(
        lambda: getattr(fastdl.functional, function)(*arguments, **options),
        lambda: getattr(torch.nn.functional, function)(*arguments, **options),
    ).error


UNUSUAL: dict[str, Callable[[], Tensor]] = {
    "sparse COO": lambda: X[0].relu().to_sparse(),
    "sparse CSR": lambda: X[0].relu().to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([X[0], X[1, :2]]),
    "jagged": lambda: torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged),
    "mkldnn": X.to_mkldnn,
    "meta": lambda: X.to("meta"),
    "complex": lambda: torch.complex(X, X),
    "negative view": lambda: torch._neg_view(X),
    "overlapping": lambda: X.as_strided((2, 3, 4), (1, 1, 1)),
    "parameter": lambda: torch.nn.Parameter(X.clone()),
    "undefined gradient": lambda: X.clone().requires_grad_(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("function", [f for f in fastdl.functional.__all__ if f not in OWN])
def test_unusual_tensors(function: str, kind: str) -> None:
    if kind == "mkldnn" and X.device.type != "cpu":
        pytest.skip("only on the CPU: tensors of this layout")
    x = UNUSUAL[kind]()
    arguments: tuple[Any, ...] = ()
    if function.endswith("_norm"):
        arguments = ((x.size(-1),) if kind not in ("nested", "jagged") else (4,),)
    if function == "batch_norm":
        arguments = (None, None, None, None, True)
    if function == "group_norm":
        arguments = (1,)
    if function in SOFTMAX_FAMILY:
        arguments = (1,)
    if function == "dropout":
        arguments = (0.0,)
    if "pool" in function:
        arguments = (2,)
    if function == "scaled_dot_product_attention":
        arguments = (x, x)
    if function == "multi_head_attention_forward":
        weights = torch.linspace(-1, 1, 64).view(16, 4).split([12, 4])
        arguments = (x, x, 4, 2, weights[0], None, None, None, False, 0.0, weights[1], None)
    if function.startswith("conv"):
        arguments = (torch.ones(5, 3, 2) if function == "conv1d" else torch.ones(5, 2, 2, 2),)
    outcome = assert_same_kind_of_outcome(function, x, *arguments)
    if kind in ("negative view", "overlapping", "parameter"):
        assert outcome.error is None


LOSSES_OF_CLASSES = ("cross_entropy", "nll_loss", "linear_cross_entropy")


def loss_of_classes(module: Any, function: str, x: Tensor) -> Any:
    """Of the rows of x, each with another class."""
    rows = x.flatten(0, 1) if not x.is_nested else x
    target = torch.arange(6, device=x.device) % 4
    if function == "linear_cross_entropy":
        return module.linear_cross_entropy(rows, torch.ones(4, 4), target, reduction="none")
    return getattr(module, function)(rows, target, reduction="none")


def assert_same_kind_of_outcome(function: str, x: Tensor, *arguments: Any) -> Outcome:
    """As same_outcome, for layouts that torch.testing cannot all compare as they are."""

    def run(module: Any) -> Any:
        if function == "embedding":
            y = module.embedding(torch.tensor([[1], [0]]), x.flatten(0, 1))
        elif function in LOSSES_OF_CLASSES:
            y = loss_of_classes(module, function, x)
        elif "loss" in function or "entropy" in function:
            y = getattr(module, function)(x, x, reduction="none")
        else:
            y = getattr(module, function)(x, *arguments)
        if isinstance(y, tuple):  # with the weights of attention
            return y
        if y.is_nested:
            return list(y.unbind())
        return [y.layout, y.to_dense()] if y.layout == torch._mkldnn else y  # type: ignore[attr-defined]

    return assert_same_outcome(
        lambda: run(fastdl.functional), lambda: run(torch.nn.functional), function, warnings=False
    )


NORM_ARGUMENTS: list[tuple[Any, ...]] = [
    ((),),
    ((5,),),
    ((3,),),
    ((4, 3),),
    ((1, 2, 3, 4),),
    ((-1,),),
    ((4.0,),),
    ("4",),
    (4,),
    (None,),
    ([4],),
    (torch.Size([4]),),
    (numpy.array([4]),),
    (torch.tensor([4]),),
    ((True,),),
    ((2**70,),),
    ((4,), torch.ones(3)),
    ((4,), torch.ones(1)),
    ((4,), torch.ones(1, 4)),
    ((4,), torch.ones(4, dtype=torch.float64)),
    ((4,), torch.ones(4, dtype=torch.bfloat16)),
    ((4,), torch.ones(4, dtype=torch.int64)),
    ((4,), [1.0] * 4),
    ((4,), 1.0),
    ((4,), torch.ones(4, device="meta")),
    ((4,), torch.ones(4).to_sparse()),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("arguments", NORM_ARGUMENTS, ids=repr)
def test_wrong_shapes_and_parameters_of_norms(function: str, arguments: tuple[Any, ...]) -> None:
    same_outcome(function, X, *arguments)
    if function == "layer_norm" and len(arguments) == 2:
        same_outcome(function, X, arguments[0], None, arguments[1])
        same_outcome(function, X, arguments[0], torch.ones(4), arguments[1])


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    "eps", [0, 1, True, numpy.float32(1e-3), numpy.float64(1e-3), torch.tensor(1e-3), math.nan,
            math.inf, -1e-3, "1", None, 10**400, 1j], ids=repr
)  # fmt: skip
def test_every_kind_of_eps(function: str, eps: Any) -> None:
    same_outcome(function, X, (4,), eps=eps)


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("value", [None, 3.0, "x", [1.0, 2.0], numpy.ones(4)], ids=type)
def test_norm_of_what_is_no_tensor(function: str, value: Any) -> None:
    assert same_outcome(function, value, (4,)).error is not None


@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_norm_of_another_dtype(function: str, dtype: torch.dtype) -> None:
    same_outcome(function, X.to(dtype), (4,))
    same_outcome(function, torch.tensor(1.0), (4,))
