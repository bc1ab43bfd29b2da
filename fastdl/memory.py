"""Keeping freed CPU memory for the next tensor instead of returning it to the system."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings

# Parameters of glibc's mallopt(3). To return to: the most that glibc itself raises its thresholds
# to as blocks are freed, since the first call of mallopt ends that adjustment for good.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MAX_THRESHOLD = (4 << 20) * ctypes.sizeof(ctypes.c_long)
# One heap for all threads: a heap of their own is too small for large blocks, they are mapped.
# glibc takes no number back for unlimited, so that this stays.
_KEPT = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
_RETURNED = (
    (_M_MMAP_MAX, 65536),
    (_M_MMAP_THRESHOLD, _MAX_THRESHOLD),
    (_M_TRIM_THRESHOLD, 2 * _MAX_THRESHOLD),
)

_lock = threading.Lock()
_is_kept = False


def why_memory_cannot_be_kept() -> str | None:
    """One clause, or None where :func:`keep_memory` works."""
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError):
        return "the C library is not glibc"
    process, glibc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
    addresses = [ctypes.cast(it.malloc, ctypes.c_void_p).value for it in (process, glibc)]
    if addresses[0] != addresses[1]:
        return "another allocator is loaded in place of glibc's malloc and has settings of its own"
    return None


def memory_is_kept() -> bool:
    """Whether :func:`keep_memory` is on."""
    return _is_kept


def keep_memory(enabled: bool = True) -> bool:
    """Keeps freed CPU memory of this process for its next tensors; returns whether it is kept.

    glibc returns every freed block above 32 MiB to the system at once, and most smaller ones when
    they are at the end of the heap. The next tensor of that size is then mapped and zeroed anew,
    page fault by page fault, which often takes longer than the op that fills it. Kept memory is
    reused as it is: large activations and gradients of a training step cost no page faults from
    the second step on. What was measured, in time and in memory, is in ``docs/memory.md``.

    It holds for the whole process, for every library that calls ``malloc``, and from this call on:
    call it once, at the start, before large tensors and before other threads, which keep the heap
    that they have begun with. The process then stays at its peak memory, plus what fragmentation
    adds. ``keep_memory(False)`` gives free memory back to the system and goes back to glibc's usual
    thresholds; threads that start then go on sharing one heap. Calls may be repeated, from any
    thread. GPU memory is not concerned, as torch keeps that by itself.

    Only glibc can be told so. With another C library, or another allocator in its place (jemalloc,
    tcmalloc, mimalloc: they keep freed memory by settings of their own), nothing is changed, a
    RuntimeWarning says why, and False is returned.

    Source: mallopt(3), M_MMAP_MAX = 0, M_TRIM_THRESHOLD = -1 and M_ARENA_MAX = 1.
    """
    global _is_kept
    reason = why_memory_cannot_be_kept()
    if reason is not None:
        if enabled:
            warnings.warn(f"freed memory cannot be kept: {reason}", RuntimeWarning, stacklevel=2)
        return False
    glibc = ctypes.CDLL("libc.so.6")
    with _lock:
        if enabled != _is_kept:
            for parameter, value in _KEPT if enabled else _RETURNED:
                glibc.mallopt(parameter, value)
            if not enabled:
                glibc.malloc_trim(0)
            _is_kept = enabled
        return _is_kept
