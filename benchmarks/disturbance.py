"""Whether another process took a core away while something was timed.

On a machine with few cores a compiler or a browser in the background turns microseconds into
whole time slices of the scheduler, and the kernels are no longer what is measured.
"""

from __future__ import annotations

from pathlib import Path

THREADS = Path("/proc/self/task")

# Share of the time of a round its threads may wait for a core before the round is thrown out
WAITING_SHARE = 0.05


def seconds_waited() -> float:
    """How long the threads of this process have waited for a core so far; 0 where unknown.

    The second field of schedstat is the time spent runnable but not running, in nanoseconds. A
    thread that waits for work or at a barrier does not count.
    """
    if not THREADS.exists():
        return 0.0
    nanoseconds = 0
    for thread in THREADS.iterdir():
        try:
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended, or the kernel does not keep count
            continue
    return nanoseconds * 1e-9
