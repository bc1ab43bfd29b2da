"""The picture of a report: one bar a case, grouped by op and direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.harness import Result
from benchmarks.summary import LOSS, MAX_EXTRA_MICROSECONDS, by_group

FASTER, EQUAL, SLOWER, BEST = "#1f6feb", "#9aa5b1", "#d1242f", "#24292f"
INCHES_PER_BAR = 0.19


def label_of(result: Result) -> str:
    """Shape, and dtype where it is not the usual one; a question mark if it was disturbed."""
    dtype = "" if result.dtype == "float32" else f" {result.dtype}"
    return result.shape + dtype + (" ?" if result.disturbed else "")


def draw_bars(
    axes: Axes, results: Sequence[Result], values: list[float], colors: list[str],
    origin: float, form: str,
) -> list[float]:  # fmt: skip
    """Bars from the origin under a heading for each group; returns the height of each bar."""
    positions: list[float] = []
    height = 0.0
    for group, members in by_group(results):
        axes.text(0.005, height, group, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=8, fontweight="bold")  # fmt: skip
        positions += [height + 1 + index for index in range(len(members))]
        height = positions[-1] + 1.5
    axes.barh(positions, [it - origin for it in values], left=origin, color=colors, height=0.75)
    axes.axvline(origin, color="black", linewidth=1)
    axes.set_yticks(positions, [label_of(result) for result in results], fontsize=7)
    axes.set_ylim(height - 0.5, -1)
    for position, value in zip(positions, values, strict=True):
        axes.annotate(form.format(value), (max(value, origin), position), xytext=(4, 0), fontsize=7,
                      textcoords="offset points", va="center")  # fmt: skip
    return positions


def draw_speed_ups(axes: Axes, results: Sequence[Result]) -> None:
    """Ratios on a logarithmic axis; a tick shows the ratio to the best native setting."""
    results = [result for _, members in by_group(results) for result in members]
    values = [result.speed_up() for result in results]
    colors = [SLOWER if value < LOSS else EQUAL if value < 2 - LOSS else FASTER for value in values]
    axes.set_xscale("log")
    positions = draw_bars(axes, results, values, colors, 1.0, "{:.2f}x")
    best = [result.speed_up(result.best_native) for result in results]
    axes.scatter(best, positions, marker="|", s=60, color=BEST, zorder=3)
    axes.set_xlim(min(0.5, *values, *best) / 1.3, max(2.0, *values, *best) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("speed-up against torch (bar) and against its best native setting (tick)")


def draw_overheads(axes: Axes, results: Sequence[Result]) -> None:
    """Differences in microseconds."""
    results = [result for _, members in by_group(results) for result in members]
    values = [result.extra_microseconds for result in results]
    colors = [
        SLOWER if value > MAX_EXTRA_MICROSECONDS else FASTER if value < -0.1 else EQUAL
        for value in values
    ]
    draw_bars(axes, results, values, colors, 0.0, "{:+.2f}")
    axes.axvline(MAX_EXTRA_MICROSECONDS, color="black", linewidth=1, linestyle=":")
    axes.margins(x=0.15)
    axes.set_xlabel("microseconds a tiny call costs more than torch's (dotted: the target)")


def save_plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Speed-ups above, overheads below."""
    parts = [
        (draw, chosen)
        for draw, overhead in ((draw_speed_ups, False), (draw_overheads, True))
        if (chosen := [result for result in results if result.overhead == overhead])
    ]
    heights = [len(chosen) + 1.5 * len(by_group(chosen)) + 3 for _, chosen in parts]
    figure = Figure(figsize=(9, INCHES_PER_BAR * sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title)
    every_axes = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (draw, chosen) in zip(every_axes, parts, strict=True):
        draw(axes, chosen)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
