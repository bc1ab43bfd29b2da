"""Kernels never see a Tensor: checks what the files of each layer of csrc/ include."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CSRC = Path(__file__).parent.parent / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
BINDINGS = "torch/bindings.cpp"
PYTHON = re.compile(r"pybind|Python\.h|torch/csrc/utils/pybind|torch/extension\.h")
CUDA = re.compile(r"cuda|cooperative_groups|mma\.h|cub/|nv/")


def is_standard(header: str) -> bool:
    """Headers of C++ and C have no directory and no torch in their name."""
    return re.fullmatch(r"[a-z_0-9]+(\.h)?", header) is not None or header.startswith("sys/")


def problem(path: Path, quoted: bool, header: str) -> str | None:
    """What is wrong with this include in this file, or None."""
    name = path.relative_to(CSRC).as_posix()
    if PYTHON.search(header) and name != BINDINGS:
        return f"only {BINDINGS} may see Python"
    glue = re.search(r"_(torch|autograd)\.(cpp|h)$", name) or name.startswith("torch/")
    if glue:
        return None
    if quoted:
        allowed = header.startswith(("common/", f"{path.parent.name}/"))
        if not allowed or "_torch" in header:
            return "only common/ and the op's own folder"
        return None
    is_cpu = path.stem.endswith("_cpu")
    if is_standard(header) or (is_cpu and header.startswith("ATen/cpu/vec/")):
        return None
    if path.suffix in (".cu", ".cuh") and CUDA.search(header):
        return None
    return "only standard headers" + (", ATen/cpu/vec" if is_cpu else "")


def main() -> int:
    """Print every include that breaks the rule; 1 if there is one."""
    found = 0
    for path in sorted(CSRC.rglob("*")):
        if path.suffix not in (".cpp", ".h", ".cu", ".cuh"):
            continue
        for mark, header in INCLUDE.findall(path.read_text()):
            wrong = problem(path, mark == '"', header)
            if wrong:
                print(f"csrc/{path.relative_to(CSRC)} includes {header}: {wrong}")
                found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
