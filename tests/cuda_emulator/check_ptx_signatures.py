"""The emulator's common/ptx.cuh must declare exactly the functions of csrc/common/ptx.cuh."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    HERE.parent.parent / "csrc" / "common" / "ptx.cuh",
    HERE / "include" / "common" / "ptx.cuh",
)
SIGNATURE = re.compile(
    r"(?:template <(?P<template>[^>]*)>\s*)?"
    r"__device__ __forceinline__ (?P<result>[\w*&: ]+?)\s*\b(?P<name>\w+)"
    r"\((?P<parameters>.*?)\) \{",
    re.DOTALL,
)


def parameter_type(parameter: str) -> str:
    """Without its name: float (&d)[4] -> float (&)[4]."""
    parameter = " ".join(parameter.split())
    if "(&" in parameter:
        return re.sub(r"\(&\w*\)", "(&)", parameter)
    return re.sub(r"([*&]|\s)\s*\w+$", r"\1", parameter).strip()


def signatures(path: Path) -> set[str]:
    """Of the functions of namespace ptx, apart from its details."""
    text = re.sub(
        r"namespace detail \{.*?\}  // namespace detail", "", path.read_text(), flags=re.S
    )
    found = set()
    for match in SIGNATURE.finditer(text):
        parameters = match["parameters"]
        types = ", ".join(map(parameter_type, parameters.split(","))) if parameters else ""
        template = f"template <{match['template']}> " if match["template"] else ""
        found.add(f"{template}{match['result']} {match['name']}({types})")
    return found


def main() -> int:
    """Print what only one of the files has; 1 if there is something."""
    ours, emulated = (signatures(path) for path in FILES)
    if not ours:
        print(f"no functions found in {FILES[0].name}")
        return 1
    for signature in sorted(ours - emulated):
        print(f"not in the emulator's common/ptx.cuh: {signature}")
    for signature in sorted(emulated - ours):
        print(f"only in the emulator's common/ptx.cuh: {signature}")
    return int(ours != emulated)


if __name__ == "__main__":
    sys.exit(main())
