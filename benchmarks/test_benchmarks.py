"""The quick cases under pytest-benchmark: `pytest benchmarks`, `--benchmark-compare` and so on.

Tracks a candidate over time. For fastdl against torch, `python -m benchmarks` is fairer, because it
calls them in turns.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from benchmarks.harness import DEFAULT, FASTDL, Case, Options, prepare_calls
from benchmarks.limits import last_level_cache_bytes
from benchmarks.machine import keep_freed_memory
from benchmarks.suite import select_cases

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module", autouse=True)
def _allocator() -> None:
    """The same state of the allocator as in `python -m benchmarks`."""
    keep_freed_memory()


@pytest.mark.parametrize("candidate", [FASTDL, DEFAULT])
@pytest.mark.parametrize("case", select_cases(), ids=lambda case: case.name)
def test_case(benchmark: Any, case: Case, candidate: str) -> None:
    options = Options()
    cache_bytes = last_level_cache_bytes(options.device)
    calls = prepare_calls(case, case.make_inputs(options.device), options, cache_bytes)[candidate]
    benchmark.group = case.name
    if len(calls) == 1:
        benchmark(calls[0])
    else:
        next_call = cycle(calls).__next__
        benchmark(lambda: next_call()())
