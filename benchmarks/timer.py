"""How long a call takes: by the clock of the host, or on a GPU by its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat

import torch

Call = Callable[[], object]
Timer = Callable[..., float]  # (call, calls=1) -> seconds a call

TRIES = 4
CALIBRATION_CYCLES = 20_000_000
LEAST_SLEEP, LONGEST_SLEEP = 5e-5, 0.05  # seconds


class HostTimer:
    """Seconds a call over a batch of calls, until the last result is there."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def __call__(self, call: Call, calls: int = 1) -> float:
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        if self._on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls


class DeviceTimer:
    """Seconds a call takes on the GPU, whatever the host needs to issue it.

    The GPU sleeps until the host has issued the whole batch, which then runs without gaps, and is
    timed by events on the stream. A sample during which the GPU woke up too early is taken again
    with a longer sleep; what never fits, because the call itself waits for the GPU, is timed so.
    """

    def __init__(self, device: torch.device) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cycles_per_second = sleep_rate(torch.cuda.current_device())
        self._sleep = LEAST_SLEEP

    def __call__(self, call: Call, calls: int = 1) -> float:
        for _ in range(TRIES):
            torch.cuda._sleep(int(self._sleep * self._cycles_per_second))
            start = time.perf_counter()
            self._begin.record()
            for _ in repeat(None, calls):
                call()
            self._end.record()
            issued_in_time = not self._begin.query()
            issuing = time.perf_counter() - start
            self._end.synchronize()
            self._sleep = min(max(2 * issuing, LEAST_SLEEP), LONGEST_SLEEP)
            if issued_in_time:
                break
        return float(self._begin.elapsed_time(self._end)) * 1e-3 / calls


@lru_cache
def sleep_rate(device: int) -> float:
    """Cycles a second of the clock that torch.cuda._sleep counts, at the speed of a busy GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        begin.record()
        torch.cuda._sleep(CALIBRATION_CYCLES)
        end.record()
        end.synchronize()
    return CALIBRATION_CYCLES / (begin.elapsed_time(end) * 1e-3)


def make_timer(device: torch.device, host_clock: bool = False) -> Timer:
    """The clock that decides: on a GPU its own, unless the time of the caller counts."""
    return HostTimer(device) if device.type == "cpu" or host_clock else DeviceTimer(device)
