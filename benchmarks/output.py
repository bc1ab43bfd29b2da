"""The report as a table on the terminal and as JSON, CSV, Markdown and picture files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Result
from benchmarks.limits import Limits
from benchmarks.machine import Machine
from benchmarks.plot import save_plot
from benchmarks.summary import HEADINGS, SUMMARY_HEADINGS, row, summarize

# Of the terminal table; a longer cell pushes its own line only.
WIDTHS = (11, 15, 34, 8, 12, 12, 13, 22, 10, 10, 12, 8, 5)
EXPLANATION = (
    "Times are medians ± half the interquartile range, candidates called in turns. Speed-up: "
    "torch as called by default, divided by fastdl; vs best: the fastest native way found, "
    "divided by fastdl. LOSS: below 0.95, or more than a microsecond of extra overhead; a "
    "question mark: other processes disturbed the case, and the means leave it out. Rate and "
    "limit count the least possible traffic; a case in cache is held against the bandwidth of the "
    "cache, and one slightly too large for it may pass the limit of memory because its output "
    "stays there. Error: largest error of fastdl divided by that of torch, both against float64. "
    "On a GPU the time is that of the kernels, without the host's, except for overhead and steps "
    "'as called', and the limit is the bandwidth of a large copy."
)
MEMORY_TITLE = "Peak memory of a training step of attention"


@dataclass
class Report:
    """One run."""

    machine: Machine
    limits: Limits
    results: list[Result] = field(default_factory=list)
    memory: list[tuple[str, ...]] = field(default_factory=list)  # the table of attention_memory

    def header(self) -> list[str]:
        """Machine, versions, allocator and limits."""
        return self.machine.lines() + self.limits.lines()


def table_line(cells: Sequence[str], widths: Sequence[int] = WIDTHS) -> str:
    """Cells in columns."""
    return " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))


def summary_lines(report: Report) -> list[str]:
    """The table of groups for the terminal."""
    rows = [SUMMARY_HEADINGS, *(group.row() for group in summarize(report.results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [table_line(cells, widths) for cells in rows]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of GitHub's Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def notes(report: Report) -> list[str]:
    """What single cases have to say, and how many were disturbed."""
    lines = [
        f"{result.op} {result.direction} {result.shape} {result.dtype}: {result.note}"
        for result in report.results
        if result.note
    ]
    if disturbed := sum(result.disturbed for result in report.results):
        lines.append(f"{disturbed} cases were disturbed by other processes (marked ?)")
    return lines


def markdown(report: Report, picture: str) -> str:
    """The whole report."""
    lines = [f"# Benchmarks on {report.machine.name}", ""]
    lines += [f"- {line}" for line in report.header()]
    lines += ["", EXPLANATION, "", "## Geometric means and worst cases", ""]
    lines += markdown_table(SUMMARY_HEADINGS, [group.row() for group in summarize(report.results)])
    lines += ["", f"![speed-up of every group]({picture})", "", "## Every case", ""]
    lines += markdown_table(HEADINGS, [row(result) for result in report.results])
    lines += ["", *(f"- {note}" for note in notes(report))]
    if report.memory:
        lines += ["", f"## {MEMORY_TITLE}", ""]
        lines += markdown_table(report.memory[0], report.memory[1:])
    return "\n".join(lines).rstrip() + "\n"


def result_record(result: Result) -> dict[str, Any]:
    """A result with what follows from it, for JSON."""
    return asdict(result) | {
        "speed_up": result.speed_up(),
        "best_native": result.best_native,
        "speed_up_against_best": result.speed_up(result.best_native),
    }


def write_csv(report: Report, path: Path) -> None:
    """One line a case, times in seconds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([
            "op", "direction", "shape", "dtype", "group", "in_cache", "bytes", "flops",
            "fastdl_s", "fastdl_iqr_s", "torch_s", "torch_iqr_s", "compiled_s",
            "best_native", "best_native_s", "floor_s", "error_ratio",
        ])  # fmt: skip
        for it in report.results:
            fast, native = it.timings[FASTDL], it.timings[DEFAULT]
            compiled = it.timings.get(COMPILED)
            writer.writerow([
                it.op, it.direction, it.shape, it.dtype, it.group, it.in_cache, it.bytes_moved,
                it.flops, fast.median, fast.spread * fast.median, native.median,
                native.spread * native.median, compiled.median if compiled else None,
                it.best_native, it.timings[it.best_native].median, it.floor, it.error_ratio,
            ])  # fmt: skip


def write_files(report: Report, directory: Path, suffix: str = "") -> list[Path]:
    """JSON, CSV, picture and Markdown, named after the machine."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = report.machine.name + suffix
    paths = [directory / f"{stem}{ending}" for ending in (".json", ".csv", ".png", ".md")]
    record = {
        "machine": asdict(report.machine),
        "limits": asdict(report.limits),
        "summary": [asdict(group) for group in summarize(report.results)],
        "results": [result_record(result) for result in report.results],
        "attention_memory": report.memory,
    }
    paths[0].write_text(json.dumps(record, indent=1) + "\n")
    write_csv(report, paths[1])
    save_plot(report.results, f"fastdl on {report.machine.name}", paths[2])
    paths[3].write_text(markdown(report, paths[2].name))
    return paths
