"""embedding and its gradient against plain indexing in float64."""

from __future__ import annotations

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

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def lookup(indices: Tensor, **options: Any) -> Call:
    """The call of embedding as a function of the weight."""

    def call(module: ModuleType, weight: Tensor) -> Tensor:
        return module.embedding(indices, weight, **options)

    return call


def random_indices(shape: tuple[int, ...], rows: int) -> Tensor:
    return torch.randint(rows, shape)


@pytest.mark.every_isa
@all_dtypes
def test_rows_of_every_size(dtype: torch.dtype) -> None:
    for dim in SIZES:
        indices = random_indices((3, 7), 11)
        check_function(lookup(indices), random_tensor((11, dim), dtype), label=f"dim {dim}")


@all_dtypes
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=dtype_name)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (5, 0), (3, 4, 2), (1000,)], ids=str)
def test_indices_of_every_shape(
    dtype: torch.dtype, index_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    indices = random_indices(shape, 13).to(index_dtype)
    check_function(lookup(indices), random_tensor((13, 20), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_indices_and_gradients_of_every_layout(layout: str) -> None:
    indices = LAYOUTS[layout](random_indices((4, 5, 6), 9))
    grad = random_tensor((4, 5, 6, 8), layout=layout)
    check_function(lookup(indices), random_tensor((9, 8)), grad_output=grad)


@all_dtypes
def test_rows_that_lie_apart(dtype: torch.dtype) -> None:
    weight = random_tensor((20, 30), dtype)
    indices = random_indices((6, 3), 9)
    for view in (weight[:, :7], weight[::2], weight[3:, 5:6], weight[:1].expand(9, 30)):
        check_function(lookup(indices % len(view)), view)


def test_columns_that_lie_apart_are_torchs() -> None:
    weight = random_tensor((20, 30))
    for view in (weight.t(), weight[:, ::2]):
        check_function(lookup(random_indices((6,), 20)), view, kernel=False)
    assert all(reason for _, reason, _ in fastdl.report().hand_overs)


@all_dtypes
@pytest.mark.parametrize("padding_idx", [0, 3, 8, -1, -9])
def test_row_of_padding_gets_no_gradient(dtype: torch.dtype, padding_idx: int) -> None:
    indices = random_indices((40,), 9)
    indices[::5] = padding_idx % 9
    check_function(lookup(indices, padding_idx=padding_idx), random_tensor((9, 17), dtype))


@all_dtypes
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["uniform", "zipf", "one row", "sorted", "first and last"])
def test_any_distribution_of_indices(dtype: torch.dtype, kind: str) -> None:
    rows, count, dim = 1013, 3000, 67
    zipf = (rows ** torch.rand(count, dtype=torch.float64)).long() - 1
    indices = {
        "uniform": random_indices((count,), rows),
        "zipf": zipf,
        "one row": torch.full((count,), 500),
        "sorted": random_indices((count,), rows).sort().values,
        "first and last": torch.tensor([0, rows - 1]).repeat(count // 2),
    }[kind]
    check_function(lookup(indices), random_tensor((rows, dim), dtype))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("dim", [256, 255])
def test_gradients_and_outputs_larger_than_the_cache(dtype: torch.dtype, dim: int) -> None:
    # Written past the cache, in vectors that must be aligned.
    check_function(lookup(random_indices((300,), 12_011)), random_tensor((12_011, dim), dtype))
    check_function(lookup(random_indices((9000,), 301)), random_tensor((301, dim), dtype))


@all_dtypes
def test_gradients_are_the_same_with_any_number_of_threads(dtype: torch.dtype) -> None:
    weight = random_tensor((503, 129), dtype).requires_grad_()
    indices = random_indices((2000,), 503) // 7
    grad = random_tensor((2000, 129), dtype)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        output = fastdl.functional.embedding(indices, weight)
        results += torch.autograd.grad(output, weight, grad)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_bits_of_rows_are_copied() -> None:
    bits = torch.tensor([[0x7FC12345, 0x7F812345, 1], [-0x80000000, 0x7F800000, -1]])
    weight = bits.to(torch.int32).view(torch.float32)
    got = fastdl.functional.embedding(torch.tensor([1, 0, 1]), weight)
    assert torch.equal(got.view(torch.int32), bits.to(torch.int32)[[1, 0, 1]])


@given(data=st.data())
def test_any_shape_and_dtype(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=3), "shape"))
    rows, dim = data.draw(st.integers(1, 50), "rows"), data.draw(st.integers(0, 50), "dim")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    check_function(lookup(random_indices(shape, rows)), random_tensor((rows, dim), dtype))


@pytest.mark.cpu_only("on a GPU the kernel stops")
@pytest.mark.parametrize("index", [-1, 7, -(2**31), 2**31 - 1, 2**40, -(2**63), 2**63 - 1])
def test_index_out_of_range_raises_the_error_of_torch(index: int) -> None:
    weight = torch.randn(7, 3)
    for position in (0, 99):
        indices = torch.zeros(100, dtype=torch.int64)
        indices[position] = index
        outcome = assert_same_outcome(
            lambda: fastdl.functional.embedding(indices, weight),  # noqa: B023
            lambda: torch.nn.functional.embedding(indices, weight),  # noqa: B023
        )
        assert isinstance(outcome.error, IndexError)


@pytest.mark.parametrize("padding_idx", [7, 100, -8, 2**40])
def test_padding_out_of_range_raises_the_error_of_torch(padding_idx: int) -> None:
    calls = [
        lambda m=m: m.embedding(torch.tensor([1]), torch.randn(7, 3), padding_idx)
        for m in (fastdl.functional, torch.nn.functional)
    ]
    assert assert_same_outcome(*calls).error is not None


HANDED_OVER: dict[str, dict[str, Any]] = {
    "max_norm": {"max_norm": 0.5},
    "norm_type": {"max_norm": 0.5, "norm_type": 1.0},
    "scale_grad_by_freq": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True},
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_what_only_torch_has_is_handed_over(name: str) -> None:
    indices, results = torch.tensor([1, 2, 1]), []
    start = random_tensor((5, 4))
    for module in (fastdl.functional, torch.nn.functional):
        weight = start.clone().requires_grad_()
        output = module.embedding(indices, weight, **HANDED_OVER[name])
        output.square().sum().backward()
        results.append([output, weight, weight.grad.to_dense()])
    torch.testing.assert_close(*results)
    ((op, _, count),) = fastdl.report().hand_overs
    assert op == "embedding" and count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool, torch.uint8])
def test_indices_of_another_dtype_are_torchs(dtype: torch.dtype) -> None:
    calls = [
        lambda m=m: m.embedding(torch.tensor([1, 0]).to(dtype), torch.ones(3, 2))
        for m in (fastdl.functional, torch.nn.functional)
    ]
    assert_same_outcome(*calls)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    weight = torch.randn(3000, 1024).bfloat16().requires_grad_()
    indices = torch.arange(2_100_000) % 2999
    output = fastdl.functional.embedding(indices, weight)
    assert output.numel() > 2**31
    assert torch.equal(output[-1], weight[indices[-1]])
    (grad,) = torch.autograd.grad(
        output, weight, torch.ones((), dtype=torch.bfloat16).expand_as(output)
    )
    counts = torch.bincount(indices, minlength=3000)
    torch.testing.assert_close(grad[:, 7], counts.bfloat16())
