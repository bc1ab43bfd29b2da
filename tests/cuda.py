"""What the tests of CUDA share. They name the device of every tensor, whatever --device is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch

Made = TypeVar("Made")

# Of the GPU's clock: some tenths of a second, much longer than the host needs for any call here.
SLEEP_CYCLES = 300_000_000

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that torch can use"
)
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="there is no second GPU that torch can use"
)
# A sanitizer sees the end of a tensor only if each has a block of its own, asked from CUDA: then
# every allocation waits for the GPU, and none is allowed in a graph.
needs_cached_memory = pytest.mark.skipif(
    os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1",
    reason="PYTORCH_NO_CUDA_MEMORY_CACHING=1: allocations wait for the GPU",
)


def on_gpu(make: Callable[[], Made], device: str = "cuda") -> Made:
    """What `make` makes, its tensors on the GPU."""
    with torch.device(device):
        return make()


@contextmanager
def without_waiting() -> Iterator[None]:
    """The GPU is busy, and the block must not wait for it: neither through torch nor by itself."""
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES)
    awake = torch.cuda.Event()
    awake.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        assert not awake.query(), "the host waited for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def captured(call: Callable[[], Made]) -> tuple[torch.cuda.CUDAGraph, Made]:
    """The call as a graph, and the tensors that each replay writes its results to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # whatever is done only once must be done before
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result
