"""The machine and the software a report was measured on, and the state of its allocator."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import fastdl

MAX_TOUCHED_BYTES = 4 << 30


@dataclass(frozen=True)
class Machine:
    """The header of a report."""

    name: str  # for file names: the GPU, or processor, instruction set and threads
    system: str
    processor: str  # that the cases run on: the GPU if there is one
    instruction_set: str
    threads: int
    device: str
    torch: str
    fastdl: str
    python: str
    commit: str
    date: str
    allocator: str

    def lines(self) -> list[str]:
        """For the header of the report."""
        return [
            f"machine: {self.processor}, {self.instruction_set}, {self.threads} threads, "
            f"{self.system}",
            f"versions: fastdl {self.fastdl} ({self.commit}), torch {self.torch}, "
            f"python {self.python}; {self.date}",
            f"allocator: {self.allocator}",
        ]


def keep_freed_memory() -> str:
    """Keep what is freed, as users can; returns the state of the allocator in words.

    Page faults of every large block would otherwise take longer than the kernels that are to be
    compared. Small blocks still nibble at large holes, so the heap grows now and then, and the
    candidate whose turn it is pays; therefore memory for all cases is touched once, ahead of them.
    """
    if not fastdl.keep_memory():
        return "as the system sets it, for both sides"
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.ones(min(MAX_TOUCHED_BYTES, free // 4), dtype=torch.uint8)
    return "freed memory kept for both sides (fastdl.keep_memory)"


def processor_name() -> str:
    """The model of the CPU."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def instruction_set() -> str:
    """What fastdl uses here, or else what torch uses."""
    from_fastdl = getattr(fastdl, "cpu_isa", None)
    return str(from_fastdl() if from_fastdl else torch.backends.cpu.get_cpu_capability()).lower()


def git_commit() -> str:
    """Short commit of the checkout, marked where files differ from it."""

    def git(*arguments: str) -> str:
        directory = Path(__file__).parent
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def slug(text: str) -> str:
    """'Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz' becomes 'intel-xeon-gold-6330'."""
    text = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b|\bprocessor\b|\b\d+-core\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def describe_machine(device: torch.device, allocator: str) -> Machine:
    """Collect the header."""
    processor, isa, threads = processor_name(), instruction_set(), torch.get_num_threads()
    system = f"{platform.system()} {platform.machine()}"
    name = f"{slug(processor)}-{slug(isa)}-{threads}threads"
    if device.type == "cuda":
        system += f", {processor}, CUDA {torch.version.cuda}"
        processor = torch.cuda.get_device_name(device)
        isa = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        name = slug(processor)
    return Machine(
        name=name,
        system=system,
        processor=processor,
        instruction_set=isa,
        threads=threads,
        device=device.type,
        torch=torch.__version__,
        fastdl=str(getattr(fastdl, "__version__", "unknown")),
        python=platform.python_version(),
        commit=git_commit(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        allocator=allocator,
    )
