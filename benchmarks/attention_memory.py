"""Peak memory of a training step of attention, which is to grow with the length and not its square.

    python -m benchmarks.attention_memory

Every entry is a process of its own. Natively a mask of all pairs is in memory, and with dropout the
weights too: tens of gigabytes at the greatest length, which is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

import fastdl
from benchmarks.bench_cross_entropy import most_memory
from benchmarks.harness import DEFAULT, FASTDL
from fastdl import masks

HEADS, HEAD_DIM, WINDOW = 2, 64, 1023
LENGTHS, LONGEST_NATIVE = (4096, 8192, 16384), 8192
WINDOWED, DROPPED = "sliding window of 1024", "causal, dropout 0.1"


def arguments_of(kind: str, side: str, length: int) -> dict[str, Any]:
    """Those of scaled_dot_product_attention."""
    if kind == DROPPED:
        return {"is_causal": True, "dropout_p": 0.1}
    if side == FASTDL:
        return {"attn_mask": masks.sliding_window(WINDOW)}
    ones = torch.ones(length, length, dtype=torch.bool)
    return {"attn_mask": ones.tril_().triu_(-WINDOW)}


def run_step(kind: str, side: str, length: int) -> None:
    """Prints the bytes of the inputs, what a step and its mask add, the peak of the process, and
    the seconds of the step."""
    source = fastdl.functional if side == FASTDL else F
    inputs = [torch.randn(1, HEADS, length, HEAD_DIM) for _ in range(4)]
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    before, start = most_memory(), time.perf_counter()
    arguments = arguments_of(kind, side, length)
    output = source.scaled_dot_product_attention(*leaves, **arguments)
    torch.autograd.grad(output, leaves, inputs[3])
    seconds, peak = time.perf_counter() - start, most_memory()
    print(json.dumps([4 * inputs[0].nbytes, peak - before, peak, seconds]))


def measure(kind: str, side: str, length: int) -> list[float]:
    """What run_step prints, of a process of its own."""
    command = [sys.executable, "-m", __spec__.name, kind, side, str(length)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: list[float] = json.loads(result.stdout)
    return numbers


def rows() -> list[tuple[str, ...]]:
    """A table with a line for each mask, length and side."""
    table = [("mask", "length", "side", "inputs", "a step adds", "whole process", "step")]
    for kind in (WINDOWED, DROPPED):
        for length in LENGTHS:
            for side in (FASTDL, DEFAULT):
                if side == FASTDL or length <= LONGEST_NATIVE:
                    *sizes, seconds = measure(kind, side, length)
                    cells = [f"{size / 1e6:.0f} MB" for size in sizes]
                    table.append((kind, str(length), side, *cells, f"{seconds:.2f} s"))
    return table


def lines(table: Sequence[Sequence[str]]) -> list[str]:
    """In columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        " | ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in table
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_step(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        print("\n".join(lines(rows())))
