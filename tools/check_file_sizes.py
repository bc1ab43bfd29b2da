"""Files stay small: prints the sizes by layer against their budgets, fails above the limit."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

LIMIT = 400
# layer, lines, patterns; a file belongs to the first layer that matches
BUDGETS = (
    ("kernel", 300, ("csrc/*/*_cpu.cpp", "csrc/*/*.cu")),
    ("glue", 150, ("csrc/*/*.cpp",)),
    ("shared header", 150, ("csrc/*/*.h", "csrc/*/*.cuh")),
    ("Python op", 150, ("fastdl/ops/*.py",)),
    ("package", 150, ("fastdl/**/*.py", "fastdl/*.py", "fastdl/*.pyi")),
    ("native test", 250, ("tests/**/*.cpp", "tests/**/*.h")),
    ("test", 250, ("tests/*.py", "tests/**/*.py")),
    ("benchmark", 250, ("benchmarks/*.py", "benchmarks/**/*.py")),
    ("other", 250, ("*.py", "**/*.py", "CMakeLists.txt", "cmake/*", "Makefile", "tools/*.sh")),
)


def source_files(root: Path) -> list[Path]:
    """What git tracks or would track."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return sorted({Path(name) for name in names if (root / name).is_file()})


def main() -> int:
    """Print the table; 1 if a file is above the limit."""
    root = Path(__file__).parent.parent
    sizes: dict[str, dict[Path, int]] = {layer: {} for layer, _, _ in BUDGETS}
    for path in source_files(root):
        for layer, _, patterns in BUDGETS:
            if any(path.match(pattern) for pattern in patterns):
                sizes[layer][path] = len((root / path).read_text().splitlines())
                break

    print(f"{'layer':<14}{'files':>6}{'median':>8}{'budget':>8}{'largest':>9}")
    over = []
    for layer, budget, _ in BUDGETS:
        if not sizes[layer]:
            continue
        largest = max(sizes[layer], key=sizes[layer].__getitem__)
        median = round(statistics.median(sizes[layer].values()))
        print(
            f"{layer:<14}{len(sizes[layer]):>6}{median:>8}{budget:>8}"
            f"{sizes[layer][largest]:>9}  {largest}"
        )
        over += [(lines, budget, path) for path, lines in sizes[layer].items() if lines > budget]

    for lines, budget, path in sorted(over, reverse=True):
        verdict = f"above the limit of {LIMIT}: split it" if lines > LIMIT else "above its budget"
        print(f"{path}: {lines} lines, budget {budget}, {verdict}")
    return int(any(lines > LIMIT for lines, _, _ in over))


if __name__ == "__main__":
    sys.exit(main())
