"""The benchmark's list of cases can be made, and every op that has a kernel is in it."""

from __future__ import annotations

import pytest

import fastdl
from benchmarks.suite import SOURCES, select_cases


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_its_own_name(device: str) -> None:
    names = [case.name for case in select_cases(full=True, device=device)]
    assert len(names) == len(set(names)) > 100


@pytest.mark.parametrize("source", SOURCES)
def test_each_file_has_quick_cases(source: str) -> None:
    assert select_cases([source])


def test_every_function_and_optimizer_is_measured() -> None:
    measured = {case.op.lower() for case in select_cases(full=True)}
    optimizers = ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "clip_grad_norm_")
    assert {*fastdl.functional.__all__, *map(str.lower, optimizers)} - measured == set()
