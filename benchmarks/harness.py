"""A benchmark case, and how its candidates are timed against each other.

Candidates are called in turn, round after round, each round starting with another one, so that a
machine that changes its speed changes it for all of them. A case that moves more than a fraction of
the last-level cache rotates through several copies of its inputs, so every call finds its data in
memory; a smaller case keeps one copy and is timed in cache. Calls of a few microseconds are timed
in batches. A round during which another process took a core away is thrown out for all candidates.
Reported are medians and quartiles. On a GPU a batch goes through the copies of the inputs in turn,
and its own clock counts, without the time of the host; see timer.py.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count, cycle

import torch

import fastdl
from benchmarks.disturbance import WAITING_SHARE, seconds_waited
from benchmarks.timer import Call, Timer, make_timer

Inputs = list[torch.Tensor]
Prepare = Callable[[Inputs], Call]

FASTDL = "fastdl"
DEFAULT = "torch"  # the native op, called as everybody calls it
COMPILED = "torch.compile"
LIGER = "Liger-Kernel"  # its Triton kernels, where they are installed
OPTIONAL = (COMPILED, LIGER)  # left out of a case that they cannot do

# A case is "in cache" below this share of the last-level cache: other candidates, their outputs
# and other tenants of the cache need room too.
CACHE_SHARE = 0.25
MAX_COPIES = 16
MAX_ROUNDS = 300
# How far the time of a case may be stretched to find enough undisturbed rounds
PATIENCE = 3
# Shorter calls are batched up to this time, about a thousand times the resolution of the clock.
SAMPLE_SECONDS = 2e-4
MAX_BATCH_ON_GPU = 50  # the queue of launches must hold them all
# How far the result of an optional candidate may be from torch's, as a share of its norm
MAX_DEVIATION = 0.03


def no_error_ratio(_: Inputs) -> float | None:
    """For cases that compute nothing new."""
    return None


@dataclass(frozen=True)
class Case:
    """One line of the report. `candidates` holds FASTDL, DEFAULT and any native alternatives."""

    op: str
    direction: str  # forward, backward, step, call or call with grad
    shape: str
    dtype: torch.dtype
    group: str  # cases of one group share a geometric mean
    make_inputs: Callable[[torch.device], Inputs]
    candidates: Mapping[str, Prepare]  # each returns the call to time
    bytes_moved: int  # least traffic with memory: every input read once, every output written once
    flops: int = 0
    error_ratio: Callable[[Inputs], float | None] = no_error_ratio
    in_place: bool = False  # candidates own their tensors, so inputs are not rotated
    overhead: bool = False  # reported as a difference in microseconds instead of a ratio
    full_only: bool = False
    host_clock: bool = False  # on a GPU: the time of the caller counts, not that of the kernels

    @property
    def name(self) -> str:
        return f"{self.op}-{self.direction}-{self.shape}-{short_name(self.dtype)}".replace(" ", "_")


@dataclass(frozen=True)
class Timing:
    """Seconds a call."""

    median: float
    lower_quartile: float
    upper_quartile: float
    samples: int
    calls_per_sample: int

    @property
    def spread(self) -> float:
        """Interquartile range as a fraction of the median."""
        return (self.upper_quartile - self.lower_quartile) / self.median


@dataclass(frozen=True)
class Result:
    """A timed case. `floor` is the least time the measured limits of the machine allow."""

    op: str
    direction: str
    shape: str
    dtype: str
    group: str
    in_cache: bool
    bytes_moved: int
    flops: int
    timings: Mapping[str, Timing]
    error_ratio: float | None = None
    floor: float | None = None
    overhead: bool = False
    disturbed: bool = False  # by other processes, too often to throw those rounds out
    note: str = ""

    @property
    def best_native(self) -> str:
        """The fastest eager native candidate, the default included."""
        native = [it for it in self.timings if not it.startswith(FASTDL) and it != COMPILED]
        return min(native, key=lambda name: self.timings[name].median)

    def speed_up(self, native: str = DEFAULT) -> float:
        """How many times as fast as this candidate fastdl is."""
        return self.timings[native].median / self.timings[FASTDL].median

    @property
    def extra_microseconds(self) -> float:
        """What a call of fastdl costs more than the native default."""
        return 1e6 * (self.timings[FASTDL].median - self.timings[DEFAULT].median)


@dataclass(frozen=True)
class Options:
    """How long and where to measure."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds_per_case: float = 1.0
    min_rounds: int = 7
    compiled: bool = False


def short_name(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def count_copies(case: Case, cache_bytes: int) -> int:
    """How many sets of inputs to rotate through; 1 keeps the case in cache."""
    if case.in_place or case.bytes_moved <= CACHE_SHARE * cache_bytes:
        return 1
    return min(MAX_COPIES, 1 + math.ceil(2 * cache_bytes / case.bytes_moved))


def prepare_calls(
    case: Case, inputs: Inputs, options: Options, cache_bytes: int
) -> dict[str, list[Call]]:
    """For each candidate, one call per copy of the inputs; on a GPU one that goes through them."""
    copies = [inputs]
    while len(copies) < count_copies(case, cache_bytes):
        copies.append([tensor.clone() for tensor in inputs])
    prepared: dict[str, list[Call]] = {}
    for name, prepare in case.candidates.items():
        if name == COMPILED and not options.compiled:
            continue
        try:
            calls = [prepare(copy) for copy in copies]
            if name in OPTIONAL:
                check_result(calls[0], prepared[DEFAULT][0])
        except Exception:
            if name not in OPTIONAL:
                raise
            continue
        prepared[name] = calls if options.device.type == "cpu" else [in_turn(calls)]
    return prepared


def in_turn(calls: list[Call]) -> Call:
    """Makes the next of these calls each time."""
    if len(calls) == 1:
        return calls[0]
    following = cycle(calls).__next__
    return lambda: following()()


def check_result(call: Call, native: Call) -> None:
    """Raises if the call does not give about what torch gives."""
    results = [[it] if isinstance(it, torch.Tensor) else it for it in (call(), native())]
    if all(isinstance(result, (tuple, list)) for result in results):
        for one, other in zip(*results, strict=True):  # type: ignore[call-overload]
            deviation = (one.float() - other.float()).norm() / other.float().norm()
            if not deviation.item() <= MAX_DEVIATION:
                raise ValueError(f"deviates from torch by {deviation.item():.1%}")


def choose_batch(timer: Timer, calls: list[Call], device: torch.device) -> int:
    """Warm up, then say how many calls make one sample; 1 where the inputs are rotated."""
    for call in calls:
        call()
    seconds = timer(calls[0])
    if len(calls) > 1 or seconds > SAMPLE_SECONDS:
        return 1
    timer(calls[0], 20)  # caches, branch predictors and the lazy parts of torch
    batch = max(1, math.ceil(SAMPLE_SECONDS / timer(calls[0], 20)))
    return batch if device.type == "cpu" else min(batch, MAX_BATCH_ON_GPU)


def time_calls(
    candidates: dict[str, list[Call]], options: Options, host_clock: bool = False
) -> tuple[dict[str, Timing], bool]:
    """Time all candidates in turns until the time of the case is spent.

    Also says whether too few rounds were undisturbed; then the disturbed ones count as well.
    """
    names = list(candidates)
    timers = {name: make_timer(options.device, host_clock) for name in names}
    batches = {name: choose_batch(timers[name], candidates[name], options.device) for name in names}
    by_host = host_clock or options.device.type == "cpu"
    rounds: list[dict[str, float]] = []
    undisturbed: list[dict[str, float]] = []
    turn = count()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(undisturbed) < MAX_ROUNDS:
            spent = (time.perf_counter() - start) / options.seconds_per_case
            enough = len(undisturbed) >= options.min_rounds
            if len(rounds) >= options.min_rounds and spent > (1 if enough else PATIENCE):
                break
            first = len(rounds) % len(names)
            waited, begin, seconds = seconds_waited(), time.perf_counter(), {}
            for name in names[first:] + names[:first]:
                calls = candidates[name]
                # The copy used longest ago, whoever used it: the coldest one.
                call = calls[next(turn) % len(calls)]
                seconds[name] = timers[name](call, batches[name])
            allowed = WAITING_SHARE * (time.perf_counter() - begin)
            rounds.append(seconds)
            if not by_host or seconds_waited() - waited <= allowed:
                undisturbed.append(seconds)
    finally:
        gc.enable()
    disturbed = len(undisturbed) < options.min_rounds
    kept = rounds if disturbed else undisturbed
    timings = {name: summarize([it[name] for it in kept], batches[name]) for name in names}
    return timings, disturbed


def summarize(samples: list[float], calls_per_sample: int) -> Timing:
    """Median and quartiles."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, len(samples), calls_per_sample)


def describe_hand_overs() -> str:
    """Which calls no kernel of fastdl covered, so that torch was compared with itself."""
    reasons = {f"{op} ({reason})" for op, reason, _ in fastdl.report().hand_overs}
    return f"handed over to torch: {', '.join(sorted(reasons))}" if reasons else ""


def describe_variants(timings: Mapping[str, Timing]) -> str:
    """How long other settings of fastdl take, named "fastdl, ..."."""
    least = timings[FASTDL].median
    return ", ".join(
        f"takes {least / timing.median:.0%} of the time of {name}"
        for name, timing in timings.items()
        if name.startswith(f"{FASTDL},")
    )


def left_out(case: Case, candidates: Mapping[str, list[Call]], options: Options) -> str:
    """Which optional candidates could not do a case, or did it wrong."""
    asked = [name for name in OPTIONAL if name in case.candidates]
    missing = [name for name in asked if name not in candidates]
    if not options.compiled:
        missing = [name for name in missing if name != COMPILED]
    return f"left out, failed or wrong: {', '.join(missing)}" if missing else ""


def run_case(
    case: Case,
    options: Options,
    cache_bytes: int,
    floor_of: Callable[[Case, bool], float | None] = lambda case, in_cache: None,
) -> Result:
    """Check and time one case."""
    if options.compiled:
        torch.compiler.reset()  # no guard of an earlier case may slow this one down
    inputs = case.make_inputs(options.device)
    error_ratio = case.error_ratio(inputs)
    fastdl.reset_hand_overs()
    candidates = prepare_calls(case, inputs, options, cache_bytes)
    in_cache = case.bytes_moved <= CACHE_SHARE * cache_bytes
    timings, disturbed = time_calls(candidates, options, case.host_clock)
    notes = (
        describe_hand_overs(), left_out(case, candidates, options), describe_variants(timings)
    )  # fmt: skip
    return Result(
        op=case.op,
        direction=case.direction,
        shape=case.shape,
        dtype=short_name(case.dtype),
        group=case.group,
        in_cache=in_cache,
        bytes_moved=case.bytes_moved,
        flops=case.flops,
        timings=timings,
        error_ratio=error_ratio,
        floor=floor_of(case, in_cache),
        overhead=case.overhead,
        disturbed=disturbed,
        note="; ".join(filter(None, notes)),
    )
