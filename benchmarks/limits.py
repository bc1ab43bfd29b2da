"""What this machine can do at most, measured in the same process as the cases.

The memory limit is the best of copy, triad and read, because a kernel may use any of them; on a GPU
it is that of copy, bytes read and written. The arithmetic limit is the rate of a large float32
matrix product; on a GPU bfloat16 is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import Case, Options
from benchmarks.timer import Call, Timer, make_timer

MEMORY_SIZED = 1 << 25  # elements of float32: 128 MiB a buffer, past every common cache
CACHE_SIZED = 1 << 18  # 1 MiB a buffer
GPU_MEMORY_SIZED = 1 << 28  # 1 GiB a buffer: the start of a kernel is nothing next to it
GPU_CACHE_SIZED = 1 << 21  # 8 MiB a buffer
MATRIX_SIZE = 2048
DEFAULT_CACHE_BYTES = 32 << 20


@dataclass(frozen=True)
class Limits:
    """Bytes (read + written) and floating-point operations a second."""

    copy: float
    triad: float
    read: float
    cached: float  # best of the three on buffers that stay in cache
    matmul: dict[str, float]  # by dtype
    memory: float  # what a case that is not in cache is held against

    def floor(self, case: Case, in_cache: bool) -> float:
        """The least time of a case in seconds."""
        bandwidth = self.cached if in_cache else self.memory
        return max(case.bytes_moved / bandwidth, case.flops / self.matmul["float32"])

    def lines(self) -> list[str]:
        """For the header of the report."""
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.matmul.items())
        return [
            f"memory: copy {self.copy / 1e9:.1f}, triad {self.triad / 1e9:.1f}, "
            f"read {self.read / 1e9:.1f} GB/s; in cache {self.cached / 1e9:.1f} GB/s",
            f"matrix product: {rates} GFLOP/s",
        ]


def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache, as far as the system tells."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        int(path.read_text().strip().rstrip("K")) << 10
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if path.read_text().strip().endswith("K")
    ]
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def least_seconds(timer: Timer, call: Call, samples: int, calls: int = 1) -> float:
    """The best sample after a warm-up: a limit is what the machine can do when undisturbed."""
    timer(call, 2)
    return min(timer(call, calls) for _ in range(samples))


def stream_rates(timer: Timer, device: torch.device, elements: int, calls: int) -> list[float]:
    """Bytes a second of copy, triad and read, on buffers of this many float32."""
    first, second, target = (torch.rand(elements, device=device) for _ in range(3))
    streams: list[tuple[int, Call]] = [
        (2, lambda: target.copy_(first)),
        (3, lambda: torch.add(first, second, alpha=0.5, out=target)),
        (1, lambda: first.sum()),
    ]
    return [
        buffers * 4 * elements / least_seconds(timer, stream, 15, calls)
        for buffers, stream in streams
    ]


def matmul_rate(timer: Timer, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product."""
    size = MATRIX_SIZE if device.type == "cpu" else 4 * MATRIX_SIZE
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(left)
    seconds = least_seconds(timer, lambda: torch.mm(left, right, out=target), 7)
    return 2 * size**3 / seconds


def measure_limits(options: Options) -> Limits:
    """Takes about three seconds on a small machine."""
    device, timer = options.device, make_timer(options.device)
    on_gpu = device.type != "cpu"
    dtypes = [torch.float32, torch.bfloat16] if on_gpu else [torch.float32]
    large, small = (GPU_MEMORY_SIZED, GPU_CACHE_SIZED) if on_gpu else (MEMORY_SIZED, CACHE_SIZED)
    copy, triad, read = stream_rates(timer, device, large, calls=1)
    return Limits(
        copy=copy,
        triad=triad,
        read=read,
        cached=max(stream_rates(timer, device, small, calls=50)),
        matmul={str(d).removeprefix("torch."): matmul_rate(timer, device, d) for d in dtypes},
        memory=copy if on_gpu else max(copy, triad, read),
    )
