"""Compiles every CUDA source for sm_80 and sm_90a (or the architectures that are named: 90a) and
prints what each kernel takes.

Needs nvcc, but no GPU. Fails when a kernel spills registers or has a stack frame and is not in
cuda_allow_list.txt, where every entry has a reason. Then checks the glue between torch and the
kernels as a build with CUDA compiles it, with the installed torch, be it one with CUDA or without.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)
OBJECTS = ROOT / "build" / "cuda"
ALLOW_LIST = Path(__file__).with_name("cuda_allow_list.txt")
ARCHITECTURES = tuple(sys.argv[1:]) or ("80", "90a")
# As CMake compiles them; how fast the launchers on the host are does not matter here.
FLAGS = ("-std=c++20", "-O0", "-DNDEBUG", "-DFASTDL_WITH_CUDA", f"-I{ROOT / 'csrc'}", "-Xptxas=-v")
ENTRY = re.compile(r"Compiling entry function \S+ for 'sm_(\w+)'\n")
KERNEL = re.compile(
    r"Function properties for (?P<name>\S+)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r"(?:ptxas info\s*: Used (?P<registers>\d+) registers(?P<used>.*))?"
)


@dataclass
class Kernel:
    """What ptxas says of one function."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spilled: int

    def line(self) -> str:
        """The line to print."""
        return (
            f"sm_{self.architecture:<5}{self.registers:>4} registers{self.shared:>7} B shared"
            f"{self.stack:>6} B stack{self.spilled:>6} B spilled  {self.name}"
        )


def demangled(name: str) -> str:
    """The name without parameters."""
    command = ["c++filt", "--no-params", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def kernels_in(report: str) -> list[Kernel]:
    """All functions of a report of ptxas."""
    found = []
    _, *parts = ENTRY.split(report)
    for architecture, part in zip(parts[::2], parts[1::2], strict=True):
        for match in KERNEL.finditer(part):
            shared = re.search(r"(\d+) bytes smem", match["used"] or "")
            found.append(
                Kernel(
                    demangled(match["name"]),
                    architecture,
                    int(match["registers"] or 0),
                    int(shared[1]) if shared else 0,
                    int(match["stack"]),
                    int(match["stores"]) + int(match["loads"]),
                )
            )
    return found


def architectures(source: Path) -> tuple[str, ...]:
    """What a source is for."""
    return ("90a",) if source.stem.endswith("_sm90") else ARCHITECTURES


def compile_one(nvcc: str, source: Path) -> tuple[str, list[Kernel]]:
    """Errors and warnings of nvcc, and the kernels."""
    name = source.relative_to(ROOT / "csrc").as_posix().replace("/", "-")
    codes = [f"-gencode=arch=compute_{it},code=sm_{it}" for it in architectures(source)]
    command = [nvcc, *FLAGS, *codes, "-c", str(source), "-o", str(OBJECTS / f"{name}.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"{source.relative_to(ROOT)}:\n{result.stderr}", []
    return "", kernels_in(result.stderr + result.stdout)


def cuda_includes(nvcc: str) -> list[str]:
    """The folders of CUDA's headers. nvcc on PATH may be a script in another place."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.findall(r'"-I([^"]+)"', result.stderr)


def glue_commands() -> dict[Path, list[str]]:
    """How the build compiles each file of the extension, its precompiled header included."""
    database = BUILD / "compile_commands.json"
    if not database.exists():
        sys.exit(f"{database} is missing: build first")
    commands = {}
    for entry in json.loads(database.read_text()):
        words = shlex.split(entry["command"])
        source, target = Path(entry["file"]), words[words.index("-o") + 1]
        if "/_C.dir/" in target and source.is_relative_to(ROOT / "csrc"):
            commands[source] = words
    return commands


def check_glue(cuda: list[str], source: Path, build_command: list[str]) -> str:
    """Errors of the host compiler with the macro and the headers of a build with CUDA."""
    added = ["-fsyntax-only", "-DFASTDL_WITH_CUDA", *(f"-isystem{path}" for path in cuda)]
    generated = "c10/cuda/impl/cuda_cmake_macros.h"
    if not any(Path(word, generated).exists() for word in build_command):  # torch without CUDA
        added.append("-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE")
    command = [*build_command, *added]
    result = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False)
    return f"{source.relative_to(ROOT)}:\n{result.stderr}" if result.returncode else ""


def allowed_names() -> list[re.Pattern[str]]:
    """The names in the allow list."""
    lines = [line for line in ALLOW_LIST.read_text().splitlines() if line.strip()]
    entries = [line.split("|") for line in lines if not line.startswith("#")]
    for entry in entries:
        if len(entry) != 2 or not entry[1].strip():
            sys.exit(f"{ALLOW_LIST.name}: no reason after '{entry[0]}'")
    return [re.compile(name.strip()) for name, _ in entries]


def main() -> int:
    """Compile, print, judge."""
    nvcc = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '')}/bin:{os.environ['PATH']}")
    if nvcc is None:
        sys.exit("nvcc was found neither on PATH nor in CUDA_HOME")
    cuda, glue = cuda_includes(nvcc), glue_commands()
    OBJECTS.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda source: compile_one(nvcc, source), sources))
        glue_errors = list(pool.map(lambda source: check_glue(cuda, source, glue[source]), glue))

    kernels = [kernel for _, found in results for kernel in found]
    errors = [error for error, _ in results if error] + [error for error in glue_errors if error]
    allowed = allowed_names()
    for kernel in kernels:
        print(kernel.line())
        known = any(pattern.search(kernel.name) for pattern in allowed)
        if (kernel.stack or kernel.spilled) and not known:
            errors.append(f"spills or has a stack frame: {kernel.line()}")
    errors += [
        f"{ALLOW_LIST.name}: nothing is named {pattern.pattern}"
        for pattern in allowed
        if not any(pattern.search(kernel.name) for kernel in kernels)
    ]
    print(
        "\n".join(
            [
                *errors,
                f"{len(sources)} sources, {len(kernels)} kernels, {len(glue)} files of glue, "
                f"{len(errors)} errors",
            ]
        )
    )
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
