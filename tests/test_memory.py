"""keep_memory: large tensors stop faulting their pages anew, until it is turned off again."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastdl
from fastdl import memory
from fastdl.__main__ import state

pytestmark = pytest.mark.cpu_only("memory of the C library")
only_glibc = pytest.mark.skipif(
    memory.why_memory_cannot_be_kept() is not None, reason="needs glibc's allocator"
)

DEFINITIONS = """
import json, resource, threading, torch, fastdl

def fault_count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults():
    "Page faults of a block of 1, 40 and 100 MiB while one of its size is free: medians."
    medians = []
    for size in (1, 40, 100):
        counts = []
        for _ in range(8):
            before = fault_count()
            torch.ones(size << 20, dtype=torch.uint8)
            counts.append(fault_count() - before)
        medians.append(sorted(counts)[4])
    return medians

def resident():
    "MiB of memory that the process has."
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

torch.set_num_threads(1)
seen = {}
"""


def what_was_seen(program: str) -> dict[str, Any]:
    """`seen` of a program, run by another process: the allocator belongs to a process."""
    code = f"{DEFINITIONS}\n{program}\nprint(json.dumps(seen))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


@only_glibc
def test_kept_memory_is_not_faulted_again_until_it_is_given_back() -> None:
    seen = what_was_seen(
        """
from fastdl.__main__ import state
seen["states"] = [dict(state())["freed memory"]]
seen["default"] = faults()
seen["on"] = [fastdl.keep_memory(), fastdl.keep_memory(True)]
seen["states"].append(dict(state())["freed memory"])
seen["kept"] = faults()
seen["resident"] = [resident()]
seen["off"] = [fastdl.keep_memory(False), fastdl.keep_memory(False)]
seen["resident"].append(resident())
seen["returned"] = faults()
seen["on again"] = fastdl.keep_memory()
seen["kept again"] = faults()
"""
    )
    assert seen["on"] == [True, True] and seen["off"] == [False, False] and seen["on again"]
    assert seen["states"][0].startswith("returned to the system (fastdl.keep_memory()")
    assert seen["states"][1].startswith("kept")
    large = slice(1, None)  # above glibc's own threshold
    for without, within in (("default", "kept"), ("returned", "kept again")):
        assert min(seen[without][large]) > 10, f"the test has nothing to show: {seen}"
        for before, after in zip(seen[without], seen[within], strict=True):
            assert after <= max(0.1 * before, 3), seen
    assert seen["resident"][0] - seen["resident"][1] > 90, seen


@only_glibc
def test_memory_of_other_threads_is_kept() -> None:
    seen = what_was_seen(
        """
fastdl.keep_memory()
def measure():
    faults()
    seen["kept"] = faults()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""
    )
    assert max(seen["kept"]) < 10, seen


@only_glibc
def test_threads_may_switch_it_at_any_time() -> None:
    seen = what_was_seen(
        """
def switch(first):
    for i in range(12):
        fastdl.keep_memory(bool((i + first) % 2))
        assert torch.ones(40 << 18).sum() == 40 << 18
threads = [threading.Thread(target=switch, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
seen["on"], seen["off"] = fastdl.keep_memory(), fastdl.keep_memory(False)
"""
    )
    assert seen == {"on": True, "off": False}


@only_glibc
def test_threads_share_one_heap_then_and_afterwards() -> None:
    seen = what_was_seen(
        """
import ctypes
from pathlib import Path

def heaps():
    "Heaps of glibc after 4 threads have asked for memory at the same time."
    meet = threading.Barrier(4)
    def ask():
        torch.ones(1000)
        meet.wait()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    libc, path = ctypes.CDLL("libc.so.6"), Path("heaps.xml")
    stream = libc.tmpfile
    stream.restype = ctypes.c_void_p
    file = ctypes.c_void_p(stream())
    libc.malloc_info(0, file)
    libc.rewind(file)
    text = ctypes.create_string_buffer(1 << 20)
    libc.fread(text, 1, len(text) - 1, file)
    return text.value.decode().count("<heap nr=")

fastdl.keep_memory()
before = heaps()
seen["kept"] = heaps() - before
fastdl.keep_memory(False)
seen["returned"] = heaps() - before
"""
    )
    assert seen == {"kept": 0, "returned": 0}


def test_another_allocator_is_named_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """One whose malloc is at another address than that of any other."""

        def __init__(self, name: str | None) -> None:
            self.malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(lambda size: None)

    monkeypatch.setattr(memory.ctypes, "CDLL", Library)
    with pytest.warns(RuntimeWarning, match="another allocator"):
        assert fastdl.keep_memory() is False


def test_another_c_library_is_named_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def confstr(name: str) -> str:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(os, "confstr", confstr)
    with pytest.warns(RuntimeWarning, match="freed memory cannot be kept: .* not glibc"):
        assert fastdl.keep_memory() is False
    assert fastdl.keep_memory(False) is False
    assert "not glibc" in dict(state())["freed memory"]
