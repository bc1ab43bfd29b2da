"""Results in words and figures: the columns of a case, and the sums of a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Result, Timing

HEADINGS = (
    "op", "direction", "shape", "dtype", "fastdl", "torch", "torch.compile", "best native setting",
    "speed-up", "vs best", "rate", "of limit", "error",
)  # fmt: skip
SUMMARY_HEADINGS = (
    "group", "cases", "against torch", "worst of them", "against best native", "worst of these",
)  # fmt: skip

# Below this a case is marked: the rest is the noise of a shared machine.
LOSS = 0.95
MAX_EXTRA_MICROSECONDS = 1.0


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    scale, unit = next((it for it in units if seconds >= it[0]), units[-1])
    value = seconds / scale
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {unit}"


def format_timing(timing: Timing | None) -> str:
    """Median and half the interquartile range."""
    return f"{format_seconds(timing.median)} ±{timing.spread / 2:.0%}" if timing else "-"


def format_speed_up(speed_up: float) -> str:
    """A ratio, marked if fastdl loses."""
    return f"{speed_up:.2f}x" + (" LOSS" if speed_up < LOSS else "")


def format_extra(microseconds: float) -> str:
    """A difference, marked if fastdl costs too much."""
    return f"{microseconds:+.1f} us" + (" LOSS" if microseconds > MAX_EXTRA_MICROSECONDS else "")


def format_rate(result: Result) -> str:
    """GB/s, or GFLOP/s where the case counts operations."""
    if result.floor is None:
        return "-"
    amount, unit = (result.flops, "GFLOP/s") if result.flops else (result.bytes_moved, "GB/s")
    return f"{amount / result.timings[FASTDL].median / 1e9:.1f} {unit}"


def row(result: Result) -> tuple[str, ...]:
    """The line of one case, one string for each of HEADINGS."""
    best = result.best_native
    fast = result.timings[FASTDL]
    of_limit = f"{result.floor / fast.median:.0%}" if result.floor else "-"
    if result.overhead:
        against_default, against_best, of_limit = format_extra(result.extra_microseconds), "-", "-"
    else:
        against_default = format_speed_up(result.speed_up())
        against_best = format_speed_up(result.speed_up(best))
    if result.disturbed:
        against_default += " ?"
    return (
        result.op,
        result.direction,
        result.shape,
        result.dtype,
        format_timing(fast),
        format_timing(result.timings[DEFAULT]),
        format_timing(result.timings.get(COMPILED)),
        "default" if best == DEFAULT else f"{best} {format_seconds(result.timings[best].median)}",
        against_default,
        against_best,
        "-" if result.overhead else format_rate(result),
        of_limit,
        f"{result.error_ratio:.2f}" if result.error_ratio is not None else "-",
    )


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass(frozen=True)
class GroupSummary:
    """Speed-ups of one group, or for overhead the extra microseconds; disturbed cases left out."""

    group: str
    cases: int
    disturbed: int
    overhead: bool
    against_default: float | None = None  # geometric mean, or mean extra microseconds
    worst_default: float | None = None
    against_best: float | None = None
    worst_best: float | None = None

    def row(self) -> tuple[str, ...]:
        """One string for each of SUMMARY_HEADINGS."""
        form = format_extra if self.overhead else format_speed_up
        figures = (self.against_default, self.worst_default, self.against_best, self.worst_best)
        return (
            self.group,
            str(self.cases) + (f", {self.disturbed} disturbed" if self.disturbed else ""),
            *("-" if figure is None else form(figure) for figure in figures),
        )


def by_group(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Groups in the order of their first case."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return list(groups.items())


def summarize_group(group: str, results: Sequence[Result]) -> GroupSummary:
    """Geometric mean and worst case; for overhead mean and worst difference."""
    kept = [result for result in results if not result.disturbed]
    size, disturbed, overhead = len(results), len(results) - len(kept), results[0].overhead
    if not kept:
        return GroupSummary(group, size, disturbed, overhead)
    if overhead:
        extra = [result.extra_microseconds for result in kept]
        return GroupSummary(group, size, disturbed, overhead, sum(extra) / len(extra), max(extra))
    default = [result.speed_up() for result in kept]
    best = [result.speed_up(result.best_native) for result in kept]
    return GroupSummary(
        group, size, disturbed, overhead,
        geometric_mean(default), min(default), geometric_mean(best), min(best),
    )  # fmt: skip


def summarize(results: Iterable[Result]) -> list[GroupSummary]:
    """The sums of all groups."""
    return [summarize_group(group, members) for group, members in by_group(results)]
