"""The functions on GPUs: streams, graphs, several devices, no waiting for the GPU.

Their values are tested by all other files with --device cuda, and by test_cuda_sizes.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from tests.cases import FunctionCase, all_cases, copies
from tests.compare import assert_same_bits, assert_same_metadata
from tests.cuda import (
    SLEEP_CYCLES,
    captured,
    needs_cached_memory,
    needs_gpu,
    needs_two_gpus,
    on_gpu,
    without_waiting,
)
from tests.outcome import assert_same_outcome, outcome_of
from tests.tensors import random_tensor

pytestmark = [needs_gpu, pytest.mark.usefixtures("no_default_device")]


def outputs_and_gradients(case: FunctionCase, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of every leaf, all computed by kernels of fastdl."""
    with fastdl.strict():
        output = case.fast(*leaves)
        grads = torch.autograd.grad(output.sin().sum(), leaves)
    assert fastdl.report().hand_overs == []
    return [output.detach(), *grads]


@pytest.mark.sanitizer_small
@all_cases
def test_a_plain_call_is_computed_by_the_kernels(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    results = outputs_and_gradients(case, leaves)
    assert all(result.is_cuda for result in results)
    expected = case.native(*leaves)
    torch.testing.assert_close(results[0], expected)
    grads = torch.autograd.grad(expected.sin().sum(), leaves)
    torch.testing.assert_close(results[1:], list(grads), rtol=1e-4, atol=1e-5)


@needs_cached_memory
@all_cases
def test_a_graph_replays_forward_and_backward_on_new_values(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    graph, results = captured(lambda: outputs_and_gradients(case, leaves))
    for _ in range(3):
        with torch.no_grad():
            for leaf, value in zip(leaves, on_gpu(case.tensors), strict=True):
                leaf.copy_(value)
        graph.replay()
        replayed = [result.clone() for result in results]
        for got, right in zip(replayed, outputs_and_gradients(case, leaves), strict=True):
            assert_same_bits(got, right)


@all_cases
def test_kernels_run_on_the_current_stream(case: FunctionCase) -> None:
    leaves, values = on_gpu(case.leaves), on_gpu(case.tensors)
    expected = outputs_and_gradients(case, [value.requires_grad_() for value in values])
    outputs_and_gradients(case, leaves)  # loads the kernels
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        with torch.no_grad():
            for leaf, value in zip(leaves, values, strict=True):
                leaf.copy_(value)  # late: whoever does not wait for this stream sees the old value
        results = outputs_and_gradients(case, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    for got, right in zip(results, expected, strict=True):
        assert_same_bits(got, right)


@needs_cached_memory
@all_cases
def test_neither_forward_nor_backward_waits_for_the_gpu(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    expected = outputs_and_gradients(case, leaves)
    with without_waiting():
        results = outputs_and_gradients(case, leaves)
    for got, right in zip(results, expected, strict=True):
        assert_same_bits(got, right)


@needs_cached_memory
@pytest.mark.parametrize(("rows", "cols"), [(3, 70_001), (3, 600_001), (20_011, 257)])
@pytest.mark.parametrize("op", ["softmax", "layer_norm"])
def test_large_tensors_do_not_wait_for_the_gpu_either(op: str, rows: int, cols: int) -> None:
    x = on_gpu(lambda: random_tensor((rows, cols))).requires_grad_()
    weight = torch.ones(cols, device="cuda", requires_grad=True)

    def call() -> tuple[Tensor, ...]:
        if op == "softmax":
            return torch.autograd.grad(fastdl.functional.softmax(x, -1).sin().sum(), [x])
        output = fastdl.functional.layer_norm(x, (cols,), weight, weight)
        return torch.autograd.grad(output.sin().sum(), [x, weight])

    call()
    with without_waiting(), fastdl.strict():
        call()


@needs_two_gpus
@all_cases
def test_tensors_of_a_device_that_is_not_the_current_one(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves, "cuda:1")
    assert torch.cuda.current_device() == 0
    results = outputs_and_gradients(case, leaves)
    assert torch.cuda.current_device() == 0
    assert all(result.device == torch.device("cuda:1") for result in results)
    elsewhere = [leaf.detach().to("cuda:0").requires_grad_() for leaf in leaves]
    for got, right in zip(results, outputs_and_gradients(case, elsewhere), strict=True):
        assert_same_bits(got.cpu(), right.cpu())


@all_cases
@pytest.mark.parametrize("position", [0, -1])
def test_tensors_of_different_devices_give_the_error_of_torch(
    case: FunctionCase, position: int
) -> None:
    tensors = on_gpu(case.tensors)
    tensors[position] = tensors[position].cpu()
    outcome = assert_same_outcome(lambda: case.fast(*tensors), lambda: case.native(*tensors))
    assert (outcome.error is not None) == (len(tensors) > 1)


@all_cases
def test_grad_output_of_another_device_gives_the_error_of_torch(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    grad = torch.ones(case.shape)
    outcomes = [
        outcome_of(lambda call=call: torch.autograd.grad(call(*leaves), leaves, grad))
        for call in (case.fast, case.native)
    ]
    assert outcomes[0].error is not None
    assert type(outcomes[0].error) is type(outcomes[1].error)


@all_cases
def test_strict_also_holds_in_the_thread_of_the_backward(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    output = case.fast(*leaves).sin().sum()
    with fastdl.strict(), pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(output, leaves, create_graph=True)


@all_cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_the_dtypes_of_torch(case: FunctionCase, dtype: torch.dtype) -> None:
    leaves = on_gpu(case.leaves)
    inputs = [leaves[0].detach().to(dtype).requires_grad_(), *leaves[1:]]
    results = []
    for call in (case.fast, case.native):
        own = copies(inputs)
        with torch.autocast("cuda", dtype=dtype):
            output = call(*own)
        results.append([output, *torch.autograd.grad(output.sum(), own)])
    for fast, native in zip(*results, strict=True):
        assert_same_metadata(fast, native)
        torch.testing.assert_close(fast, native, rtol=2e-2, atol=2e-2)


@pytest.mark.sanitizer_small
@all_cases
def test_a_default_device_is_no_reason_to_hand_over(case: FunctionCase) -> None:
    leaves = on_gpu(case.leaves)
    expected = outputs_and_gradients(case, leaves)
    with torch.device("cuda"):
        results = outputs_and_gradients(case, leaves)
    for got, right in zip(results, expected, strict=True):
        assert_same_bits(got, right)
