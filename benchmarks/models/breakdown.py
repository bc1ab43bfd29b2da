"""Where the time of a call goes, by kind of op, from torch's own profiler."""

from __future__ import annotations

import os
from collections import defaultdict
from statistics import median

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Call

# Kineto announces every start and stop of a profile on stderr below this level.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

ROUNDS, CALLS = 7, 5
OPTIMIZER = "optimizer step"
# The first kind whose word occurs in the name of an event, in lower case and without underscores;
# forward and backward count together.
KINDS = (
    ("cross entropy", ("crossentropy", "nllloss", "logsoftmax")),
    ("softmax", ("softmax",)),
    ("batch_norm", ("batchnorm",)),
    ("pooling", ("pool",)),
    ("attention", ("attention",)),
    ("embedding", ("embedding",)),
    ("layer_norm", ("layernorm",)),
    ("rms_norm", ("rmsnorm",)),
    ("convolution", ("conv",)),
    ("matrix products", ("addmm", "::mm", "bmm", "matmul", "linear", "baddbmm")),
    ("activation", ("gelu", "relu", "silu", "threshold")),
    ("copies", ("copy", "clone", "contiguous")),
)
OTHER = "everything else"


def kind_of(event: FunctionEvent) -> str:
    """The kind an event belongs to; whatever runs inside a step of an optimizer is that step."""
    ancestor: FunctionEvent | None = event
    while ancestor is not None:
        if ancestor.name.startswith("Optimizer.step"):
            return OPTIMIZER
        ancestor = ancestor.cpu_parent
    name = event.name.lower().replace("_", "")
    return next((kind for kind, words in KINDS if any(word in name for word in words)), OTHER)


def profile_once(call: Call, device: torch.device, calls: int = CALLS) -> dict[str, float]:
    """Milliseconds of each kind in some calls."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
    kinds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        on_device = device.type == "cuda"
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        kinds[kind_of(event)] += microseconds * 1e-3 / calls
    return kinds


def measure_breakdowns(sides: list[Call], device: torch.device) -> list[dict[str, float]]:
    """Milliseconds a call of each side spends in each kind: medians, the sides taken in turns.

    The profiler adds a microsecond or so to every op, so the sum is above the time of a call.
    """
    for call in sides:
        profile_once(call, device)
    rounds = [[profile_once(call, device) for call in sides] for _ in range(ROUNDS)]
    return [
        {kind: median(it.get(kind, 0.0) for it in profiles) for kind in profiles[0]}
        for profiles in zip(*rounds, strict=True)
    ]


def breakdown_lines(native: dict[str, float], fast: dict[str, float]) -> list[str]:
    """A table of both sides, what takes native torch longest first."""
    lines = [f"{'ms a step, profiled':<20} | {'torch':>8} | {'fastdl':>8} | speed-up"]
    for kind in sorted({*native, *fast}, key=lambda kind: -native.get(kind, 0.0)):
        before, after = native.get(kind, 0.0), fast.get(kind, 0.0)
        ratio = f"{before / after:.2f}x" if after > 0 else "-"
        lines.append(f"{kind:<20} | {before:8.3f} | {after:8.3f} | {ratio}")
    return lines
