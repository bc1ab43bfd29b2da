"""Several Python threads at once, and torch's own pool with one and with many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

import fastdl
from tests.cases import FunctionCase, all_cases
from tests.compare import assert_same_bits
from tests.tensors import random_tensor


def large_leaves(case: FunctionCase) -> list[Tensor]:
    """Enough elements that a kernel uses the pool."""
    shape = (97, *case.shape[:-1], case.shape[-1])
    return [random_tensor(shape).requires_grad_(), *case.leaves()[1:]]


def outputs_and_gradients(case: FunctionCase, leaves: list[Tensor]) -> list[Tensor]:
    output = case.fast(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)]


@all_cases
@pytest.mark.cpu_only("torch's pool of threads")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_with_any_number_of_threads(case: FunctionCase, threads: int) -> None:
    leaves = large_leaves(case)
    torch.set_num_threads(1)
    expected = outputs_and_gradients(case, leaves)
    torch.set_num_threads(threads)
    got = outputs_and_gradients(case, leaves)
    # The output does not depend on the split; sums over rows (parameters' gradients) do.
    assert_same_bits(got[0], expected[0])
    torch.testing.assert_close(got[1:], expected[1:], rtol=1e-4, atol=1e-3)
    for one, other in zip(got, outputs_and_gradients(case, leaves), strict=True):
        assert_same_bits(one, other)


@all_cases
def test_concurrent_calls_do_not_disturb_each_other(case: FunctionCase) -> None:
    torch.set_num_threads(2)
    work = [large_leaves(case) for _ in range(6)]
    expected = [outputs_and_gradients(case, leaves) for leaves in work]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            results = list(pool.map(lambda leaves: outputs_and_gradients(case, leaves), work))
            for got, right in zip(results, expected, strict=True):
                for one, other in zip(got[:1], right[:1], strict=True):
                    assert_same_bits(one, other)
                torch.testing.assert_close(got[1:], right[1:], rtol=1e-4, atol=1e-3)


def test_concurrent_optimizers_do_not_disturb_each_other() -> None:
    device = torch.get_default_device()  # of this thread: another one has its own

    def train(seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        random = partial(torch.randn, 40_000, generator=generator, device=device)
        parameter = torch.nn.Parameter(random())
        optimizer = fastdl.optim.AdamW([parameter], lr=1e-2)
        for _ in range(5):
            parameter.grad = random()
            optimizer.step()
        return parameter.detach()

    expected = [train(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for got, right in zip(pool.map(train, range(6)), expected, strict=True):
            assert_same_bits(got, right)


def test_number_of_threads_of_torch_is_left_alone() -> None:
    torch.set_num_threads(2)
    fastdl.functional.softmax(random_tensor((300, 300)), 1)
    assert torch.get_num_threads() == 2


def test_a_long_row_in_a_new_thread_has_its_own_scratch_memory() -> None:
    x = random_tensor((1, 200_000))
    expected = fastdl.functional.softmax(x, 1)
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            assert_same_bits(pool.submit(fastdl.functional.softmax, x, 1).result(), expected)
