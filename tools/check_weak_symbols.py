"""Code for one instruction set must not run on a machine without it.

A function that several object files define (an inline function, a template) is kept once by the
linker, from any of them. In the AVX2 and AVX-512 files such a function may use their instructions,
so each must have the instruction set in its name: a namespace of its own. Code that runs when the
library is loaded, on every machine, must not use vector registers at all.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

WEAK = re.compile(r"^[0-9a-f]+ [WVu] (\S+)$", re.MULTILINE)
OWN_NAMESPACE = re.compile(r"AVX2|AVX512")
VECTOR = re.compile(r"%[xyz]mm|%k[1-7]\b")


def output(*command: str) -> str:
    """What the command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def offenders(path: Path) -> list[str]:
    """What is wrong with one object file."""
    symbols = WEAK.findall(output("nm", "--defined-only", str(path)))
    found = [
        f"shared function {output('c++filt', name).strip()}"
        for name in symbols
        if not OWN_NAMESPACE.search(name) and not name.startswith("DW.ref.")  # a pointer, no code
    ]
    at_load = output("objdump", "--disassemble", "--section=.text.startup", str(path))
    if VECTOR.search(at_load):
        found.append("vector instructions that run when the library is loaded (a global variable)")
    return found


def main(builds: list[str]) -> int:
    """Check all object files of the build folders; 1 if something was found."""
    files = sorted(path for build in builds for path in Path(build).rglob("*_AVX*.dir/**/*.o"))
    if not files and platform.machine() == "x86_64":
        sys.exit(f"no AVX object files in {' '.join(builds)}: build first")
    found = [f"{path}: {what}" for path in files for what in offenders(path)]
    print("\n".join([*found, f"{len(files)} object files, {len(found)} offenders"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
