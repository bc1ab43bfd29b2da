"""Writes the results recorded in benchmarks/results/*.json into README.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)


def section(path: Path, record: dict[str, Any]) -> list[str]:
    """What one run measured, as a table by group."""
    from benchmarks.output import markdown_table
    from benchmarks.summary import SUMMARY_HEADINGS, GroupSummary

    machine = record["machine"]
    rows = [GroupSummary(**group).row() for group in record["summary"]]
    details = path.with_suffix(".md").relative_to(ROOT).as_posix()
    return [
        f"**{machine['processor']}**, {machine['instruction_set']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, {machine['date']} ([every case]({details})). "
        "Means are geometric.",
        "",
        *markdown_table(SUMMARY_HEADINGS, rows),
        "",
    ]


def main() -> int:
    """Replace the block."""
    lines: list[str] = []
    for path in sorted(RESULTS.glob("*.json")):
        lines += section(path, json.loads(path.read_text()))
    block = "\n".join(lines or ["No run has been recorded yet.", ""])
    text, count = BLOCK.subn(lambda found: found[1] + block + found[2], README.read_text())
    if count != 1:
        sys.exit("README.md must have exactly one block of results")
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
