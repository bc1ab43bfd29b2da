"""The kernels of the lower instruction sets, which this machine would not choose by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdl

SETS = ("default", "avx2", "avx512")
pytestmark = pytest.mark.cpu_only("instruction sets")

VARIABLE = "FASTDL_CPU_ISA"
TORCH_VARIABLE = "ATEN_CPU_CAPABILITY"  # torch's own, so that like is compared with like


def run_python(*arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    """Another Python, since the set is chosen once, at import."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, VARIABLE: isa, TORCH_VARIABLE: isa},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("isa", SETS[:2])
def test_accuracy_with_a_lower_set(isa: str) -> None:
    if SETS.index(isa) >= SETS.index(fastdl.cpu_isa()):
        pytest.skip(
            f"this process runs {fastdl.cpu_isa()} itself: there is no lower one, or not {isa}"
        )
    arguments = ("-q", "-m", "every_isa", "-p", "no:cacheprovider", "--tb=short", "tests")
    result = run_python("-m", "pytest", *arguments, isa=isa)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-2000:]}"
    assert " passed" in result.stdout


@pytest.mark.every_isa
def test_the_set_is_the_wished_one_or_a_lower_one() -> None:
    wish = os.environ.get(VARIABLE, SETS[-1])
    assert SETS.index(fastdl.cpu_isa()) <= SETS.index(wish)


@pytest.mark.skipif(VARIABLE in os.environ, reason="this process does not run the best set itself")
def test_an_unknown_name_chooses_the_best_set() -> None:
    result = run_python("-c", "import fastdl; print(fastdl.cpu_isa())", isa="fastest")
    assert result.stdout.strip() == fastdl.cpu_isa()
