"""``python -m fastdl``: what was built, and what this machine can use of it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from fastdl import _C, _build_info, functional, memory, nn, optim


def cpu_model() -> str:
    """The name of the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def cuda_state() -> str:
    """Whether CUDA kernels were built, for what, or why not."""
    if _build_info.CUDA_ABSENCE:
        return f"not built: {_build_info.CUDA_ABSENCE}"
    return f"built with CUDA {_build_info.CUDA_VERSION} for {', '.join(_build_info.CUDA_CODE)}"


def gpu_state(device: int) -> str:
    """Name and architecture of a GPU and whether this build has kernels for it."""
    major, minor = torch.cuda.get_device_capability(device)
    why_not = _C.why_cuda_device_not_covered(device)
    covered = f"not covered, native torch computes ({why_not})" if why_not else "covered"
    return f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}: {covered}"


def memory_state() -> str:
    """What becomes of freed CPU memory, and whether that can be changed."""
    if memory.memory_is_kept():
        return "kept for the next tensor"
    if why_not := memory.why_memory_cannot_be_kept():
        return f"left to the system's allocator: {why_not}"
    return "returned to the system (fastdl.keep_memory() keeps it)"


def state() -> list[tuple[str, str]]:
    """The lines to print, as pairs of a label and a text."""
    built = _build_info.TORCH_VERSION
    gpus = range(torch.cuda.device_count())
    return [
        ("fastdl", _build_info.VERSION),
        ("torch", f"{torch.__version__} (built for {built})"),
        ("Python", platform.python_version()),
        ("CPU", f"{cpu_model()}, {torch.get_num_threads()} threads"),
        ("CPU kernels", f"{_C.cpu_isa()} (built: {', '.join(_build_info.CPU_ISAS)})"),
        ("freed memory", memory_state()),
        ("CUDA kernels", cuda_state()),
        *((f"GPU {device}", gpu_state(device)) for device in gpus),
        *([] if gpus else [("GPU", "none that torch can use")]),
        ("functional", ", ".join(functional.__all__)),
        ("nn", ", ".join(nn.__all__)),
        ("optim", ", ".join(optim.__all__)),
    ]


def main() -> None:
    """Print them."""
    for label, text in state():
        print(f"{label:<14}{text}")


if __name__ == "__main__":
    main()
