"""dropout_add_layer_norm: next to the three functions of torch that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastdl
from fastdl.functional import dropout_add_layer_norm
from tests import reference
from tests.compare import assert_as_accurate_as_torch, assert_same_bits, assert_same_metadata
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, SIZES, dtype_name, generator_state, random_tensor
from tests.test_dropout import kept

OPS = torch.ops.fastdl
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def composed(
    norm: Any, noise: Tensor, input: Tensor, residual: Tensor, *parameters: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and sum, from a given noise, with the layer_norm of one module."""
    total = input * noise + residual
    return norm(total, input.shape[-1:], *parameters), total


def inputs(rows: int, cols: int, dtype: torch.dtype, parameters: str) -> list[Tensor | None]:
    tensors: list[Tensor | None] = [random_tensor((rows, cols), dtype) for _ in range(2)]
    weight_dtype = torch.float32 if "float" in parameters else dtype
    for name in ("weight", "bias"):
        wanted = name in parameters
        tensors.append(random_tensor((cols,), weight_dtype) if wanted else None)
    return tensors


def check(
    tensors: list[Tensor | None], p: float, use_sum: bool, use_output: bool = True, label: str = ""
) -> None:
    """Outputs and gradients of both are as accurate as torch's with the same mask."""
    x = tensors[0]
    assert x is not None
    grads = [torch.randn_like(x), torch.randn_like(x)]
    seed = int(torch.randint(2**60, ()).item())
    torch.manual_seed(seed)
    noise = fastdl.functional.dropout(torch.ones(x.shape, dtype=torch.float64), p)
    results = []
    for kind in ("fast", "native", "exact"):
        double = kind == "exact"
        leaves = [
            None if t is None else (t.double() if double else t).detach().clone().requires_grad_()
            for t in tensors
        ]
        if kind == "fast":
            torch.manual_seed(seed)
            input, residual, weight, bias = leaves
            assert input is not None and residual is not None
            with fastdl.strict():
                outputs = dropout_add_layer_norm(
                    input, residual, x.shape[-1:], weight, bias, p, prenorm=True
                )
        else:
            norm = reference.layer_norm if double else torch.nn.functional.layer_norm
            outputs = composed(norm, noise.to(leaves[0].dtype), *leaves)  # type: ignore
        used = [y for y, use in zip(outputs, (use_output, use_sum), strict=True) if use]
        own = [g.to(y.dtype) for g, y in zip(grads, used, strict=False)]
        wanted = [leaf for leaf in leaves if leaf is not None][: None if use_output else 2]
        with fastdl.strict():
            found = torch.autograd.grad(used, wanted, own)
        results.append([*outputs, *found])
    for number, (fast, native, exact) in enumerate(zip(*results, strict=True)):
        name = f"{label}: {number}"
        assert_same_metadata(fast, native, name)
        assert_as_accurate_as_torch(fast, native, exact, gradient=number > 1, label=name)


@pytest.mark.every_isa
@all_dtypes
def test_rows_of_every_size(dtype: torch.dtype) -> None:
    for size in SIZES:
        if size > 2:  # of two numbers, a rounding error decides
            check(inputs(64, size, dtype, "weight bias"), 0.2, use_sum=True, label=str(size))


@all_dtypes
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("parameters", ["", "weight", "bias", "weight bias"])
def test_every_choice_of_parameters(dtype: torch.dtype, parameters: str, p: float) -> None:
    for use_sum in (False, True):
        check(inputs(64, 96, dtype, parameters), p, use_sum)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_16_bit_input_with_float32_parameters(dtype: torch.dtype, p: float) -> None:
    parameters = "float weight bias"
    for use_sum in (False, True):
        check(inputs(64, 96, dtype, parameters), p, use_sum)


@all_dtypes
def test_gradient_through_the_sum_alone(dtype: torch.dtype) -> None:
    check(inputs(16, 40, dtype, "weight bias"), 0.3, use_sum=True, use_output=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.usefixtures("threads")
def test_tensors_larger_than_the_cache(dtype: torch.dtype) -> None:
    for rows, cols in ((1501, 1021), (3, 1_000_003)):
        check(inputs(rows, cols, dtype, "weight bias"), 0.1, use_sum=False, label=f"{rows} {cols}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str) -> None:
    x, other = (random_tensor((6, 5, 4, 33), layout=layout) for _ in range(2))
    y, total = dropout_add_layer_norm(x, other, (4, 33), p=0.0, prenorm=True)
    torch.testing.assert_close(total, x + other)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x + other, (4, 33)))
    assert y.is_contiguous() and total.is_contiguous()


def test_mask_is_that_of_dropout() -> None:
    x, zero = torch.ones(7, 1000), torch.zeros(7, 1000)
    torch.manual_seed(4)
    expected = fastdl.functional.dropout(x, 0.3)
    torch.manual_seed(4)
    assert_same_bits(dropout_add_layer_norm(x, zero, (1000,), p=0.3, prenorm=True)[1], expected)


def test_nothing_is_drawn_without_dropout_and_the_sum_is_optional() -> None:
    x, state = torch.ones(4, 8), generator_state()
    with fastdl.strict():
        for options in ({"training": False}, {"p": 0.0}):
            y = dropout_add_layer_norm(x, x, (8,), **options)
            assert type(y) is Tensor
            assert_same_bits(y, dropout_add_layer_norm(x, x, (8,), **options, prenorm=True)[0])
    assert torch.equal(generator_state(), state)


@pytest.mark.parametrize("prenorm", [False, True])
def test_derivatives_are_those_of_finite_differences(prenorm: bool) -> None:
    shapes = ((4, 9), (4, 9), (9,), (9,))
    leaves = [random_tensor(shape, torch.float64).requires_grad_() for shape in shapes]

    def call(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
        torch.manual_seed(6)
        return dropout_add_layer_norm(x, residual, (9,), weight, bias, 0.3, prenorm=prenorm)

    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


def test_create_graph_and_strict() -> None:
    leaf = random_tensor((4, 9)).requires_grad_()
    y = dropout_add_layer_norm(leaf, leaf, (9,))
    (grad,) = torch.autograd.grad(y.sin().sum(), leaf, create_graph=True)
    assert grad.requires_grad
    ((op, reason, _),) = fastdl.report().hand_overs
    assert "backward" in op and reason == "create_graph=True"


@pytest.mark.parametrize("which", range(4))
def test_only_the_wanted_gradients_are_computed(which: int) -> None:
    tensors = [random_tensor(shape) for shape in ((4, 9), (4, 9), (9,), (9,))]
    results = []
    for wanted in ({which}, {0, 1, 2, 3}):
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        torch.manual_seed(5)
        y = dropout_add_layer_norm(leaves[0], leaves[1], (9,), leaves[2], leaves[3], 0.4)
        results.append(torch.autograd.grad(y.square().sum(), leaves[which])[0])
    torch.testing.assert_close(*results)


def test_two_runs_and_checkpointing_give_the_same_bits() -> None:
    leaf = random_tensor((50, 300)).requires_grad_()
    grads = []
    for run in (
        lambda f: f(leaf),
        lambda f: f(leaf),
        lambda f: checkpoint(f, leaf, use_reentrant=False),
    ):
        torch.manual_seed(8)
        y = run(lambda x: dropout_add_layer_norm(x.sin(), x, (300,), p=0.3))  # type: ignore
        torch.rand(3)
        grads.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    assert_same_bits(grads[0], grads[1])
    assert_same_bits(grads[0], grads[2])


def native(x: Any, residual: Any, shape: Any, *rest: Any, p: float = 0.0) -> Tensor:
    weight, bias = (*rest, None, None)[:2]
    total = torch.nn.functional.dropout(x, p) + residual
    return torch.nn.functional.layer_norm(total, shape, weight, bias)


X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "arguments",
    [
        (X, X, (5,)),
        (X, X[0], (4,)),
        (X, X.double(), (4,)),
        (X, 1.0, (4,)),
        (X.int(), X.int(), (4,)),
        (X, X, (4,), torch.ones(3)),
        (X, X, (4,), torch.ones(4), torch.ones(3)),
        (X.to("meta"), X.to("meta"), (4,)),
        (X.bfloat16(), X, (4,)),
        (None, X, (4,)),
    ],
)
def test_what_the_kernel_does_not_cover_is_composed(arguments: tuple[Any, ...]) -> None:
    assert_same_outcome(
        lambda: dropout_add_layer_norm(*arguments, p=0.0), lambda: native(*arguments)
    )


def test_p_out_of_range_is_the_error_of_dropout_and_1_drops_everything() -> None:
    for p in (-0.1, 1.5):
        with pytest.raises(ValueError, match="dropout probability"):
            dropout_add_layer_norm(X, X, (4,), p=p)
    torch.testing.assert_close(dropout_add_layer_norm(X, X, (4,), p=1.0), native(0 * X, X, (4,)))


def test_empty_batches_and_empty_rows() -> None:
    weight = torch.ones(4, requires_grad=True)
    empty = torch.ones(0, 4, requires_grad=True)
    dropout_add_layer_norm(empty, empty, (4,), weight).sum().backward()
    assert weight.grad is not None and (weight.grad == 0).all()
    assert dropout_add_layer_norm(torch.ones(3, 0), torch.ones(3, 0), (0,)).shape == (3, 0)


def test_compiled_function_is_made_of_native_ops() -> None:
    compiled = torch.compile(
        lambda x: dropout_add_layer_norm(x, x, (4,), training=False, prenorm=True),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(X)[0], native(X, X, (4,)))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    rows, cols, p, seed = 65537, 32800, 0.5, 7
    x = torch.empty(rows, cols, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    y, total, _ = OPS.dropout_add_layer_norm_forward(x, x, [cols], None, None, p, seed, 1e-5)
    for row in (0, 40000, rows - 1):
        noise = 2 * torch.tensor([kept(row * cols + i, p, seed) for i in range(cols)])
        torch.testing.assert_close(total[row], x[row] * noise + x[row])
        expected = torch.nn.functional.layer_norm(total[row].float(), (cols,))
        torch.testing.assert_close(y[row].float(), expected, rtol=1e-2, atol=1e-2)
