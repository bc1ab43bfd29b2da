"""Finds the installed torch to build for and prints, as a CMake list:

include directory; library directory; version; CUDA version of torch or empty

torch is compiled against, never installed by the build. An isolated build (plain `pip install .`)
hides the packages of the environment that asked for it, so that environment is asked too.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = ("2.11", "2.12", "2.13")
HERE_ONLY = "--here-only"


def torch_here() -> str | None:
    """The line to print for the torch that this Python would import, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    return f"{root / 'include'};{root / 'lib'};{version['__version__']};{version['cuda'] or ''}"


def environments_outside() -> Iterator[str]:
    """The Pythons that an isolated build may have been started from."""
    yield sys.executable  # pip hides packages with PYTHONPATH only
    if "VIRTUAL_ENV" in os.environ:  # other front ends build in a virtual environment of their own
        yield str(Path(os.environ["VIRTUAL_ENV"], "bin", "python"))
    yield str(getattr(sys, "_base_executable", sys.executable))


def torch_outside() -> str | None:
    """The first torch of those environments, if it is for this version of Python."""
    hiding = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in hiding}
    same_version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in environments_outside():
        ask = [python, __file__, HERE_ONLY]
        try:
            subprocess.run([python, "-c", same_version], env=environment, check=True)
            found = subprocess.run(ask, env=environment, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if found.stdout.strip():
            return found.stdout.strip()
    return None


def main() -> None:
    """Print the line, or exit with one sentence that says what to do."""
    if HERE_ONLY in sys.argv:
        print(torch_here() or "")
        return
    found = torch_here() or torch_outside()
    wanted = f'"torch>={SUPPORTED[0]},<2.{int(SUPPORTED[-1].split(".")[1]) + 1}"'
    if found is None:
        sys.exit(
            f"fastdl is compiled against the torch that is installed, and {sys.executable} has "
            f"none: run `pip install {wanted}` first, then repeat this command (with "
            "--no-build-isolation if the installer hides the environment)"
        )
    version = found.split(";")[2]
    if ".".join(version.split(".")[:2]) not in SUPPORTED:
        sys.exit(
            f"fastdl supports torch {SUPPORTED[0]} to {SUPPORTED[-1]}, but torch {version} is "
            f"installed: run `pip install {wanted}` first"
        )
    print(found)


if __name__ == "__main__":
    main()
