"""fastdl/_C.pyi lists every public name of the built module and no more."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Print the differences; 1 if there is one."""
    from fastdl import _C

    stub = ast.parse((ROOT / "fastdl" / "_C.pyi").read_text())
    definitions = (ast.FunctionDef, ast.ClassDef)
    listed = {node.name for node in stub.body if isinstance(node, definitions)}
    listed |= {
        node.target.id
        for node in stub.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    built = {name for name in vars(_C) if not name.startswith("__")}
    for name in sorted(built - listed):
        print(f"fastdl/_C.pyi lacks {name}")
    for name in sorted(listed - built):
        print(f"fastdl/_C.pyi lists {name}, which the module lacks")
    return int(built != listed)


if __name__ == "__main__":
    sys.exit(main())
