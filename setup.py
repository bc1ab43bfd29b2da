"""Builds the native part of fastdl with CMake and Ninja. Metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# Tools of this Python first: its environment may not be activated, the system's may be too old.
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def find_tool(name: str) -> str:
    """The path of a build tool."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        sys.exit(f"fastdl is built with {name}, which was not found: run `pip install {name}`")
    return path


def run(*command: object) -> None:
    """Run a command; when it fails, what it printed stays the last word."""
    code = subprocess.call([str(word) for word in command], env=os.environ | {"PATH": SEARCH_PATH})
    if code:
        sys.exit(code)


class CMakeBuild(build_ext):
    """Configures, builds what changed and installs into the wheel, or into the checkout."""

    def run(self) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        build = ROOT / "build" / str(sys.implementation.cache_tag)
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        run(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}")  # fmt: skip
        jobs = os.environ.get("MAX_JOBS")
        run(cmake, "--build", build, *(["--parallel", jobs] if jobs else []))
        run(cmake, "--install", build, "--prefix", prefix)


# Say that torch is missing before anything else is prepared or downloaded.
if {"dist_info", "bdist_wheel", "editable_wheel"} & set(sys.argv):
    code = subprocess.call(
        [sys.executable, str(ROOT / "cmake" / "find_torch.py")], stdout=subprocess.DEVNULL
    )
    if code:
        sys.exit(code)

setup(ext_modules=[Extension("fastdl._C", [])], cmdclass={"build_ext": CMakeBuild})
