"""The examples run, shortened, and reach what they state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples import digits, resnet


@pytest.mark.cpu_only("the example trains there")
def test_digits_reaches_its_accuracy_natively_and_converted(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    result = digits.main(["--epochs", "8", "--output", str(picture)])
    assert result["passed"], result["failures"]
    assert result["losses"]["fastdl"][-1] < result["losses"]["fastdl"][0] / 4
    assert picture.stat().st_size > 10_000


@pytest.mark.cpu_only("the example trains there")
def test_resnet_learns_alike_natively_and_converted(tmp_path: Path) -> None:
    picture = tmp_path / "resnet.png"
    results = resnet.main(["--epochs", "2", "--images", "256", "--output", str(picture)])
    assert set(results) == {"digits", "photographs"}
    for name, result in results.items():
        native, fast = result["losses"]["torch"], result["losses"]["fastdl"]
        assert abs(fast[0] / native[0] - 1) < resnet.FIRST_EPOCH_LOSS_TOLERANCE, name
        assert fast[1] < fast[0], name
    assert picture.stat().st_size > 10_000


def test_patches_to_learn_from_and_held_out_ones_share_no_pixel() -> None:
    images = resnet.load_patches()
    assert images.train_images.shape[1:] == images.test_images.shape[1:] == (1, 64, 64)
    assert set(images.train_labels.tolist()) == set(images.test_labels.tolist()) == set(range(8))
    columns = np.tile(np.arange(512), (512, 1))  # pixels that are their columns
    left, right = (resnet.cut_columns(columns, held_out) for held_out in (False, True))
    assert left.max() < right.min()
