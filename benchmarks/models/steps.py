"""Training steps of large models, with freed memory returned to the system, and with it kept.

How a process allocates is a matter of its whole life, so every candidate lives in a process of its
own, which makes a step whenever it is asked to: the candidates still take turns.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch

import fastdl
from benchmarks.disturbance import WAITING_SHARE, seconds_waited
from benchmarks.harness import DEFAULT, FASTDL, Result, summarize
from benchmarks.models import bert, gpt, packed, resnet
from benchmarks.models.breakdown import breakdown_lines, profile_once

MODELS = (resnet, bert, gpt, packed)
MIN_ROUNDS, MAX_ROUNDS, MAX_SECONDS = 3, 9, 25.0
GIB = 1 << 30


@dataclass(frozen=True)
class Variant:
    """How one process makes its steps."""

    model: str  # module of benchmarks.models
    name: str  # FASTDL, DEFAULT or the best native setting
    keep: bool  # freed memory
    best: bool  # with the best native setting
    threads: int


@dataclass(frozen=True)
class Step:
    """What one step took."""

    seconds: float
    page_faults: int
    peak_bytes: int  # of the process so far


def page_faults() -> int:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_bytes() -> int:
    """The most memory this process has had. (ru_maxrss begins with that of its parent.)"""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def serve(pipe: Connection, variant: Variant) -> None:
    """The life of a process: answers to "step" and "profile"."""
    torch.set_num_threads(variant.threads)
    if variant.keep:
        fastdl.keep_memory()
    model = next(it for it in MODELS if it.__name__ == variant.model)
    call = model.make_step(fast=variant.name == FASTDL, best_native=variant.best)
    while request := pipe.recv():
        if request == "profile":
            pipe.send(dict(profile_once(call, torch.device("cpu"), calls=1)))
            continue
        before, start = page_faults(), time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        pipe.send(Step(seconds, page_faults() - before, peak_bytes()))


def start(variant: Variant, stack: ExitStack) -> Connection:
    """The pipe to a new process, which ends with the stack."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, variant), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(ours.send, None)
    return ours


def take_turns(variants: list[Variant]) -> tuple[dict[Variant, list[Step]], bool, list[str]]:
    """The steps of each, whether other processes disturbed them, and a table of the last two."""
    with ExitStack() as stack:
        pipes = {variant: start(variant, stack) for variant in variants}

        def ask(variant: Variant, request: str) -> Any:
            pipes[variant].send(request)
            return pipes[variant].recv()

        for variant in variants:  # loads, allocates, warms up
            ask(variant, "step")
        steps: dict[Variant, list[Step]] = {variant: [] for variant in variants}
        waited, begin = seconds_waited(), time.perf_counter()
        for turn in range(MAX_ROUNDS):
            if turn >= MIN_ROUNDS and time.perf_counter() - begin > MAX_SECONDS:
                break
            for variant in variants:
                steps[variant].append(ask(variant, "step"))
        disturbed = seconds_waited() - waited > WAITING_SHARE * (time.perf_counter() - begin)
        profiles = [ask(variant, "profile") for variant in variants[-2:]]
    return steps, disturbed, breakdown_lines(*profiles)


def measure(model: ModuleType, write: Callable[[str], None]) -> list[Result]:
    """Time the steps of a model, and write tables of memory and of where the time goes.

    Three processes at a time: natively as by default and with the best setting, and with fastdl.
    """
    write(f"\n{model.NAME}, {model.SHAPE}: {conversion_summary(model.make_model())}")
    sides = ((DEFAULT, False), (model.BEST_NATIVE, True), (FASTDL, True))
    steps, results = {}, []
    for keep in (False, True):
        variants = [
            Variant(model.__name__, name, keep, best, torch.get_num_threads())
            for name, best in sides
        ]
        taken, disturbed, breakdown = take_turns(variants)
        steps.update(taken)
        results.append(result(model, keep, taken, disturbed))
    write("\n".join([*memory_table(steps), f"with kept memory, {model.BEST_NATIVE}:", *breakdown]))
    return results


def conversion_summary(model: torch.nn.Module) -> str:
    """How many modules of which type fastdl replaces."""
    report = fastdl.report(fastdl.convert(model))
    replaced, kept = Counter(it[1] for it in report.replaced), Counter(it[1] for it in report.kept)
    texts = (
        ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
        for kinds in (replaced, kept)
    )
    return "fastdl replaces {}; torch keeps {}".format(*texts)


def result(
    model: ModuleType, keep: bool, steps: dict[Variant, list[Step]], disturbed: bool
) -> Result:
    """The line of the report for one state of the allocator."""
    return Result(
        op=model.NAME,
        direction="training step",
        shape=f"{model.SHAPE}, memory {'kept' if keep else 'returned'}",
        dtype="float32",
        group="models, training step",
        in_cache=False,
        bytes_moved=0,
        flops=0,
        timings={
            variant.name: summarize([step.seconds for step in taken], 1)
            for variant, taken in steps.items()
        },
        disturbed=disturbed,
    )


def memory_table(steps: dict[Variant, list[Step]]) -> list[str]:
    """What each process took, a line each."""
    lines = [f"{'freed memory':<13}| {'side':<18}| {'step':>7} | {'page faults':>11} | peak memory"]
    for variant, taken in steps.items():
        seconds, faults = (
            median(getattr(it, of) for it in taken) for of in ("seconds", "page_faults")
        )
        lines.append(
            f"{'kept' if variant.keep else 'returned':<13}| {variant.name:<18}| {seconds:5.2f} s "
            f"| {faults:>11.0f} | {taken[-1].peak_bytes / GIB:.2f} GiB"
        )
    return lines
