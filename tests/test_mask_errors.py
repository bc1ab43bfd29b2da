"""What masks refuse, and that they say what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastdl import masks
from fastdl.masks import Mask

pytestmark = pytest.mark.cpu_only("values are looked at there alone")

SIZES = (2, 4, 5, 6)  # batch, heads, queries, keys


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.sliding_window(-1), "left to be None .* at least 0, got -1"),
        (lambda: masks.sliding_window(3, -2), "right to be None .* at least 0, got -2"),
        (lambda: masks.key_padding([3, -1]), "key_padding .* at least 0, got -1"),
        (lambda: masks.prefix(-1), "prefix expects lengths of at least 0, got -1"),
        (
            lambda: masks.key_padding(torch.rand(2)),
            r"\(B\) .* got torch.float32 of shape \(2,",
        ),
        (lambda: masks.key_padding(ints(1, 2)[None]), r"shape \(B\) .* got .* of shape \(1, 2\)"),
        (lambda: masks.key_padding(torch.ones(2).bool()), r"shape \(B, S\), got .* shape \(2,\)"),
        (lambda: masks.key_padding(torch.ones(2, 6).bool(), left=True), "left=True"),
        (lambda: masks.document(), "either ids or cu_seqlens"),
        (lambda: masks.document(ints(0, 1), cu_seqlens=ints(0, 1)), "either ids or cu_seqlens"),
        (lambda: masks.document(ints(0), key_cu_seqlens=ints(0)), "key_ids with ids"),
        (lambda: masks.document(cu_seqlens=ints(0), key_ids=ints(0)), "key_cu_seqlens with cu_s"),
        (lambda: masks.document(torch.rand(5)), r"ids of shape \(L\) or \(B, L\) .* torch.float32"),
        (lambda: masks.document(cu_seqlens=ints(1, 5)), "cu_seqlens to begin with 0, got 1"),
        (lambda: masks.document(cu_seqlens=ints(0, 3, 2, 5)), r"rise, got \[0, 3, 2, 5\]"),
        (lambda: masks.document(cu_seqlens=ints(0, 5)[None]), r"\(N \+ 1\) .* shape \(1, 2\)"),
        (lambda: masks.document(cu_seqlens=ints()), "got an empty tensor"),
        (
            lambda: masks.document(cu_seqlens=ints(0, 5), key_cu_seqlens=ints(0, 2, 6)),
            "of one length, got 2 and 3",
        ),
        (lambda: masks.interval(0, torch.rand(3)), "end as integers .* got torch.float32"),
        (lambda: masks.alibi(0), "at least 1 head, got 0"),
        (lambda: masks.alibi(ints(1, 2)), r"floats of shape .* got torch.int64 of shape \(2,\)"),
        (lambda: masks.alibi(torch.ones(4).requires_grad_()), "without a gradient"),
        (lambda: masks.soft_cap(0.0), "above 0, got 0.0"),
        (lambda: masks.soft_cap(float("nan")), "above 0, got nan"),
        (lambda: masks.dense(torch.ones(5, 6)), "boolean tensor .* got torch.float32"),
        (lambda: masks.dense(torch.ones(1, 1, 1, 5, 6).bool()), r"at most 4 .* \(1, 1, 1, 5, 6\)"),
        (lambda: masks.bias(torch.ones(5, 6).bool()), "floating point .* got torch.bool"),
        (lambda: masks.bias(torch.ones(5, 6)) | masks.causal(), "add that with &"),
        (lambda: ~masks.alibi(4), "add that with &"),
        (lambda: masks.soft_cap(3) & masks.soft_cap(4), "at most one soft_cap"),
        (lambda: masks.alibi(3) & masks.alibi(4), "at most one alibi"),
    ],
)
def test_wrong_arguments(make: Callable[[], Mask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.key_padding([3, 7]), "at most 6 keys, got 7"),
        (lambda: masks.causal() | masks.prefix(8), "prefix expects lengths of at most 6 .* got 8"),
        (lambda: masks.key_padding([3, 2, 1]), r"shape \(2,\), got \(3,\)"),
        (lambda: masks.key_padding(torch.ones(2, 7).bool()), r"shape \(2, 6\), got \(2, 7\)"),
        (lambda: masks.document(cu_seqlens=ints(0, 5)), "number of keys, 6, got 5"),
        (lambda: masks.document(cu_seqlens=ints(0, 2, 6)), "number of queries, 5, got 6"),
        (lambda: masks.document(ints(0, 0, 1, 1, 1)), r"keys of shape \(2, 6\), got \(1, 5\)"),
        (
            lambda: masks.document(torch.zeros(3, 5).long()),
            r"queries of shape \(2, 5\), got \(3, 5\)",
        ),
        (lambda: masks.interval(0, torch.ones(3, 1, 5).int()), r"\(2, 4, 5, 6\), got \(3, 1, 5"),
        (lambda: masks.alibi(8), r"slopes of 4 heads, or of \(2, 4\), got \(1, 8\)"),
        (lambda: masks.dense(torch.ones(4, 6).bool()), r"\(2, 4, 5, 6\), got \(4, 6\)"),
        (lambda: masks.bias(torch.ones(6, 5)), r"bias expects .* \(2, 4, 5, 6\), got \(6, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_the_call(make: Callable[[], Mask], message: str) -> None:
    mask = make()
    with pytest.raises(ValueError, match=message):
        mask.parts(*SIZES, torch.get_default_device())


def test_only_masks_combine() -> None:
    for other in (torch.ones(5, 6).bool(), None, 3):
        with pytest.raises(TypeError):
            masks.causal() & other  # type: ignore[operator]
        with pytest.raises(TypeError):
            masks.causal() | other  # type: ignore[operator]
