"""The examples run, shortened, and reach what they state."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import digits


@pytest.mark.cpu_only("the example trains there")
def test_digits_reaches_its_accuracy_natively_and_converted(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    result = digits.main(["--epochs", "8", "--output", str(picture)])
    assert result["passed"], result["failures"]
    assert result["losses"]["fastdl"][-1] < result["losses"]["fastdl"][0] / 4
    assert picture.stat().st_size > 10_000
