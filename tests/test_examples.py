"""The examples run, shortened, and reach what they state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples import digits, resnet, text


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


@pytest.mark.cpu_only("the example trains there")
def test_text_is_learned_alike_natively_and_converted(tmp_path: Path) -> None:
    picture = tmp_path / "text.png"
    result = text.main(["--epochs", "2", "--rows", "10", "--output", str(picture)])
    native, fast = result["losses"]["torch"], result["losses"]["fastdl"]
    assert fast == pytest.approx(native, rel=text.FIRST_EPOCH_LOSS_TOLERANCE)
    assert fast[1] < fast[0]
    assert picture.stat().st_size > 10_000


def test_rows_of_text_are_whole_documents_and_what_follows() -> None:
    rows, targets = text.pack(["abc" * 400, "de" * 500])
    characters, ids = rows.unbind(1)
    assert rows.shape == (2, 2, text.LENGTH) and targets.shape == (2, text.LENGTH)
    begins = characters == text.ALPHABET.index("\n")
    same = ids.flatten()[1:] == ids.flatten()[:-1]
    assert begins.flatten().nonzero().flatten().tolist() == [0, 1201]
    assert torch.equal(characters.flatten()[1:][same], targets.flatten()[:-1][same])
    assert targets.flatten()[1200] == text.ALPHABET.index("\n")


def test_patches_to_learn_from_and_held_out_ones_share_no_pixel() -> None:
    images = resnet.load_patches()
    assert images.train_inputs.shape[1:] == images.test_inputs.shape[1:] == (1, 64, 64)
    assert set(images.train_targets.tolist()) == set(images.test_targets.tolist()) == set(range(8))
    columns = np.tile(np.arange(512), (512, 1))  # pixels that are their columns
    left, right = (resnet.cut_columns(columns, held_out) for held_out in (False, True))
    assert left.max() < right.min()
