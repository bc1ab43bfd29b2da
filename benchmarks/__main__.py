"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import attention_memory, output
from benchmarks.harness import DEFAULT, FASTDL, Case, Options, Result, run_case
from benchmarks.limits import last_level_cache_bytes, measure_limits
from benchmarks.machine import describe_machine, keep_freed_memory
from benchmarks.models import digits, steps
from benchmarks.models.breakdown import breakdown_lines, measure_breakdowns
from benchmarks.suite import select_cases
from benchmarks.summary import HEADINGS, row

RESULTS = Path(__file__).parent / "results"


MODELS = ("digits", *(model.NAME for model in steps.MODELS))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What to measure, how long, and where to write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--op", nargs="+", default=[], help="only these ops or bench files")
    parser.add_argument(
        "--models",
        nargs="*",
        choices=MODELS,
        help="only whole models, these or all, with where their time goes",
    )
    parser.add_argument("--full", action="store_true", help="every shape and dtype, longer samples")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile as a candidate (default: on a GPU only)",
    )
    parser.add_argument("--seconds", type=float, help="of a case (default 1, GPU 0.4; full: twice)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--default-allocator",
        action="store_true",
        help="leave the allocator as it is instead of keeping freed memory",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="directory of the report (default benchmarks/results for a run of everything; "
        "a run of chosen ops writes files only if this is given)",
    )
    return parser.parse_args(argv)


def run_models(names: Sequence[str], options: Options, cache_bytes: int) -> list[Result]:
    """Single steps of these models, each followed by its breakdown by op."""
    results = []
    if "digits" in names:
        tqdm.write(digits.conversion_report())
    for case in digits.cases() if "digits" in names else ():
        results.append(run_case(case, options, cache_bytes))
        tqdm.write(output.table_line(row(results[-1])))
        inputs = case.make_inputs(options.device)
        sides = [case.candidates[side](inputs) for side in (DEFAULT, FASTDL)]
        tqdm.write("\n".join(breakdown_lines(*measure_breakdowns(sides, options.device))))
    for model in steps.MODELS:
        if model.NAME in names:
            measured = steps.measure(model, tqdm.write)
            tqdm.write("\n".join(output.table_line(row(it)) for it in measured))
            results += measured
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    arguments = parse_arguments(argv)
    on_gpu = arguments.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        print("there is no GPU that torch can use", file=sys.stderr)
        return 2
    # Before the first large tensor, so that every block is treated alike.
    allocator = (
        "torch's own on the GPU for both sides"
        if on_gpu
        else "the system's default for both sides"
        if arguments.default_allocator
        else keep_freed_memory()
    )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = Options(
        device=torch.device(arguments.device),
        seconds_per_case=arguments.seconds or (0.4 if on_gpu else 1.0) * (1 + arguments.full),
        compiled=on_gpu if arguments.compile is None else arguments.compile,
    )
    models = [] if arguments.models is None else arguments.models or list(MODELS)
    if on_gpu and (of_cpu := [name for name in models if name != "digits"]):
        print(f"left out, measured on the CPU only: {', '.join(of_cpu)}", file=sys.stderr)
        models = [name for name in models if name == "digits"]
        if not models and not arguments.op:
            return 2
    selected: list[Case] = []
    if arguments.op or not models:
        try:
            selected = select_cases(arguments.op, arguments.full, options.device.type)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    everything = not arguments.op and not models

    print("measuring the limits of this machine ...", file=sys.stderr)
    cache_bytes = last_level_cache_bytes(options.device)
    report = output.Report(describe_machine(options.device, allocator), measure_limits(options))
    print("\n".join(report.header()), end="\n\n")
    print(output.table_line(HEADINGS), flush=True)

    for case in tqdm(selected, unit="case", leave=False):
        try:
            report.results.append(run_case(case, options, cache_bytes, report.limits.floor))
            tqdm.write(output.table_line(row(report.results[-1])))
        except torch.OutOfMemoryError:
            tqdm.write(f"left out, the GPU has too little memory: {case.name}")
        if on_gpu:
            torch.cuda.empty_cache()
    if (everything or "digits" in models) and options.device.type == "cpu":
        report.results.append(digits.training_result())
        tqdm.write(output.table_line(row(report.results[-1])))
    report.results += run_models(models, options, cache_bytes)

    if everything and not on_gpu:
        report.memory = attention_memory.rows()
        print("\n".join(["", output.MEMORY_TITLE, *attention_memory.lines(report.memory)]))

    print("\n" + "\n".join(output.summary_lines(report) + output.notes(report)))
    directory = arguments.output or (RESULTS if everything else None)
    if directory:
        for path in output.write_files(report, directory):
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
