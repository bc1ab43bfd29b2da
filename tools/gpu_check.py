"""Checks fastdl on a GPU: build, tests, sanitizers, benchmarks. `make gpu-check` calls it.

python tools/gpu_check.py [build] [tests] [sanitizer] [bench]      (all four if none is named)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = {
    "build": ("setuptools",),
    "tests": ("pytest", "pytest_timeout", "hypothesis", "numpy"),
    "sanitizer": ("pytest", "pytest_timeout", "hypothesis", "numpy"),
    "bench": ("matplotlib", "sklearn", "tqdm"),
}
CUDA_TESTS = ("tests/test_cuda.py", "tests/test_cuda_sizes.py", "tests/test_cuda_optimizer.py")
# Options of each tool, and tests. Only fastdl's kernels are slowed down, except where torch's are
# those that initialise memory.
OURS = ("--kernel-name", "kns=fastdl")
SANITIZERS = {
    "memcheck": (OURS, ("-k", "one_size or not cuda_sizes")),
    "racecheck": (OURS, ("-m", "sanitizer_small")),
    "initcheck": ((), ("-m", "sanitizer_small")),
}


def run(*command: str, **environment: str) -> int:
    """The exit status of a command in the checkout, with this Python's modules."""
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode


def why_not_possible(steps: list[str]) -> str | None:
    """One sentence, if this machine and this Python cannot do the steps."""
    if find_spec("torch") is None:
        return f"{sys.executable} has no torch."
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is without CUDA: install one that has it."
    if not torch.cuda.is_available():
        return "torch finds no GPU: see what `nvidia-smi` says."
    missing = sorted({it for step in steps for it in NEEDED[step] if find_spec(it) is None})
    if missing:
        return f"{sys.executable} lacks {', '.join(missing)}: install requirements-dev.txt."
    return None


def why_not_built() -> str | None:
    """One sentence, if the fastdl of this checkout has no kernels for the GPU."""
    code = (
        "import torch, fastdl; from fastdl import _C, _build_info\n"
        "absence = _build_info.CUDA_ABSENCE\n"
        "print(absence or _C.why_cuda_device_not_covered(torch.cuda.current_device()) or '')"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return f"fastdl cannot be imported: {last}"
    reason = result.stdout.strip()
    return f"fastdl has no kernels for this GPU: {reason}." if reason else None


def build() -> str | None:
    """The extension, with CUDA or not at all."""
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    return "the build failed" if run(*command, FASTDL_CUDA="1") else None


def tests() -> str | None:
    """All tests, with tensors on the GPU."""
    return "tests failed" if run(sys.executable, "-m", "pytest", "-q", "--device", "cuda") else None


def sanitizer() -> str | None:
    """The tests of CUDA under compute-sanitizer, without the larger sizes."""
    toolkit = f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}{os.pathsep}{toolkit}")
    if program is None:
        print("compute-sanitizer was not found on PATH or in CUDA_HOME: this step is left out")
        return None
    failed = []
    for tool, (options, chosen) in SANITIZERS.items():
        print(f"-- {tool}", flush=True)
        pytest = (sys.executable, "-m", "pytest", "-q", *chosen, *CUDA_TESTS)
        common = (program, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no")
        # A block of memory for each tensor: only so is an access behind its end seen.
        if run(*common, *options, *pytest, PYTORCH_NO_CUDA_MEMORY_CACHING="1"):
            failed.append(tool)
    return f"compute-sanitizer: {', '.join(failed)}" if failed else None


def bench() -> str | None:
    """The benchmark; says where it wrote."""
    status = run(sys.executable, "-m", "benchmarks", "--device", "cuda")
    return "the benchmark failed" if status else None


STEPS: dict[str, Callable[[], str | None]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
}


def main(steps: list[str]) -> int:
    """Run the steps, each to its end; build comes first and stops the others if it fails."""
    if unknown := set(steps) - STEPS.keys():
        sys.exit(f"gpu-check: no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    steps = [step for step in STEPS if not steps or step in steps]
    if reason := why_not_possible(steps):
        sys.exit(f"gpu-check: {reason}")
    import torch

    name = torch.cuda.get_device_name()
    results = ROOT / "benchmarks" / "results"
    began, lines, failures = time.time(), [], 0
    for number, step in enumerate(steps, 1):
        print(f"== {number} of {len(steps)}: {step} on {name}", flush=True)
        start = time.perf_counter()
        failure = STEPS[step]() if step == "build" else why_not_built() or STEPS[step]()
        failures += failure is not None
        lines.append(f"{step:<10}{time.perf_counter() - start:5.0f} s  {failure or 'passed'}")
        if failure and step == "build":
            break
    written = [it for it in results.glob("*.json") if it.stat().st_mtime >= began]
    print("\n".join([f"== {name}", *lines]))
    for path in written:
        print(f"results    {path.relative_to(ROOT)} and .md, .csv, .png of that name")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(re.split(r"[\s,]+", " ".join(sys.argv[1:]).strip()) if sys.argv[1:] else []))
