"""The picture of a report: a line for each group of cases, with a point for each case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.harness import Result
from benchmarks.summary import (
    LOSS,
    MAX_EXTRA_MICROSECONDS,
    GroupSummary,
    by_group,
    summarize_group,
)

FASTER, EQUAL, SLOWER, POINT = "#1f6feb", "#9aa5b1", "#d1242f", "#24292f"
INCHES_PER_LINE = 0.19

Groups = Sequence[tuple[GroupSummary, Sequence[Result]]]


def draw_groups(
    axes: Axes, groups: Groups, value_of: Callable[[Result], float], origin: float, form: str,
    color_of: Callable[[float], str],
) -> list[float]:  # fmt: skip
    """A bar from the origin to each mean, a point for each case that counts; gives their values."""
    every: list[float] = []
    for line, (summary, results) in enumerate(groups):
        values = [value_of(result) for result in results if not result.disturbed]
        every += values
        if summary.against_default is not None:
            mean = summary.against_default
            axes.barh(line, mean - origin, left=origin, color=color_of(mean), height=0.75)
            axes.annotate(form.format(mean), (max(origin, mean, *values), line), xytext=(6, 0),
                          fontsize=7, textcoords="offset points", va="center")  # fmt: skip
        lost = [SLOWER if color_of(value) == SLOWER else POINT for value in values]
        axes.scatter(values, [line] * len(values), s=9, color=lost, linewidths=0, zorder=3)
    axes.axvline(origin, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), [summary.group for summary, _ in groups], fontsize=7)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    return every


def draw_speed_ups(axes: Axes, groups: Groups) -> None:
    """Ratios on a logarithmic axis."""
    axes.set_xscale("log")
    values = draw_groups(
        axes, groups, lambda result: result.speed_up(), 1.0, "{:.2f}x",
        lambda value: SLOWER if value < LOSS else EQUAL if value < 2 - LOSS else FASTER,
    )  # fmt: skip
    axes.set_xlim(min([0.5, *values]) / 1.3, max([2.0, *values]) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("speed-up against torch: geometric mean (bar) and every case (points)")


def draw_overheads(axes: Axes, groups: Groups) -> None:
    """Differences in microseconds."""
    limit = MAX_EXTRA_MICROSECONDS
    draw_groups(
        axes, groups, lambda result: result.extra_microseconds, 0.0, "{:+.2f}",
        lambda value: SLOWER if value > limit else FASTER if value < -0.1 else EQUAL,
    )  # fmt: skip
    axes.axvline(limit, color="black", linewidth=1, linestyle=":")
    axes.margins(x=0.15)
    axes.set_xlabel("microseconds a tiny call costs more than torch's (dotted: the target)")


def save_plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Speed-ups above, overheads below."""
    groups = [(summarize_group(group, members), members) for group, members in by_group(results)]
    parts = [
        (draw, chosen)
        for draw, overhead in ((draw_speed_ups, False), (draw_overheads, True))
        if (chosen := [group for group in groups if group[0].overhead == overhead])
    ]
    heights = [len(chosen) + 4 for _, chosen in parts]
    figure = Figure(figsize=(9, INCHES_PER_LINE * sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title)
    every_axes = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (draw, chosen) in zip(every_axes, parts, strict=True):
        draw(axes, chosen)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
