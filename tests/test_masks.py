"""Masks against their definitions as boolean tensors, alone and combined, and what they cost."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdl import masks
from fastdl.masks import Mask, MaskParts

BATCH, HEADS, QUERIES, KEYS = 3, 2, 7, 11
LENGTHS = [4, 11, 0]
IDS = torch.tensor([[0, 0, 2, 2, 2, 5, 9], [1, 1, 1, 1, 1, 1, 1], [9, 9, 3, 3, 0, 0, 0]])
KEY_IDS = torch.tensor([0, 0, 2, 2, 2, 2, 5, 7, 9, 9, 9])
ALLOWED = torch.arange(BATCH * QUERIES * KEYS).view(BATCH, 1, QUERIES, KEYS) % 7 % 2 == 0


@dataclass(frozen=True)
class Case:
    """A mask and the same as a boolean function of b, i and j; how many intervals it becomes."""

    name: str
    make: Callable[[], Mask]
    counts: Callable[[Tensor, Tensor, Tensor], Tensor]
    intervals: int = 0
    queries: int = QUERIES
    keys: int = KEYS

    def expected(self) -> Tensor:
        b = torch.arange(BATCH)[:, None, None, None]
        i = torch.arange(self.queries)[:, None]
        j = torch.arange(self.keys)
        return self.counts(b, i, j).expand(BATCH, HEADS, self.queries, self.keys)

    def parts(self) -> MaskParts:
        device = torch.get_default_device()
        return self.make().parts(BATCH, HEADS, self.queries, self.keys, device)


def at(values: list[int] | Tensor, index: Tensor) -> Tensor:
    return torch.as_tensor(values)[index]


CU, KEY_CU = torch.tensor([0, 3, 3, 7]), torch.tensor([0, 2, 6, 11])
HOLES = torch.arange(KEYS) % torch.tensor([[3], [4], [5]]) > 0
SPANS = (torch.arange(KEYS) >= torch.tensor([[2], [0], [11]])) & (torch.arange(KEYS) < 9)

CASES = (
    Case("causal", lambda: masks.causal(), lambda b, i, j: j <= i),
    Case("causal bottom right", lambda: masks.causal(True), lambda b, i, j: j <= i + 4),
    Case("causal offset", lambda: masks.causal(offset=2), lambda b, i, j: j <= i + 2),
    Case(
        "window",
        lambda: masks.sliding_window(2, 1),
        lambda b, i, j: (i - 2 <= j) & (j <= i + 1),
    ),
    Case(
        "window bottom right",
        lambda: masks.sliding_window(2, bottom_right=True, offset=-1),
        lambda b, i, j: (i + 3 - 2 <= j) & (j <= i + 3),
    ),
    Case("window to the end", lambda: masks.sliding_window(1, None), lambda b, i, j: j >= i - 1),
    Case("everything", lambda: masks.sliding_window(None, None), lambda b, i, j: j > -1),
    Case("padding", lambda: masks.key_padding(LENGTHS), lambda b, i, j: j < at(LENGTHS, b), 1),
    Case(
        "left padding",
        lambda: masks.key_padding(LENGTHS, left=True),
        lambda b, i, j: j >= KEYS - at(LENGTHS, b),
        1,
    ),
    Case("padding, one interval", lambda: masks.key_padding(SPANS), lambda b, i, j: SPANS[b, j], 1),
    Case("padding, holes", lambda: masks.key_padding(HOLES), lambda b, i, j: HOLES[b, j]),
    Case(
        "prefix",
        lambda: masks.causal() | masks.prefix(LENGTHS),
        lambda b, i, j: (j <= i) | (j < at(LENGTHS, b)),
        1,
    ),
    Case(
        "sinks",
        lambda: masks.sliding_window(2) | masks.prefix(2),
        lambda b, i, j: ((i - 2 <= j) & (j <= i)) | (j < 2),
        2,
    ),
    Case(
        "joined windows",
        lambda: masks.sliding_window(2, 0) | masks.sliding_window(0, 3),
        lambda b, i, j: (i - 2 <= j) & (j <= i + 3),
    ),
    Case(
        "windows with a gap",
        lambda: masks.sliding_window(0, 0) | masks.sliding_window(0, 0, offset=3),
        lambda b, i, j: (j == i) | (j == i + 3),
        2,
    ),
    Case("not causal", lambda: ~masks.causal(), lambda b, i, j: j > i),
    Case(
        "not a window",
        lambda: ~masks.sliding_window(1, 1),
        lambda b, i, j: (j < i - 1) | (j > i + 1),
        2,
    ),
    Case("nothing", lambda: ~masks.sliding_window(None, None), lambda b, i, j: j < 0, 1),
    Case(
        "not padding", lambda: ~masks.key_padding(LENGTHS), lambda b, i, j: j >= at(LENGTHS, b), 1
    ),
    Case(
        "documents",
        lambda: masks.document(IDS),
        lambda b, i, j: IDS[b, i] == IDS[b, j],
        1,
        keys=QUERIES,
    ),
    Case(
        "scattered documents",
        lambda: masks.document(torch.tensor([0, 1, 0, 1, 1, 2, 0])),
        lambda b, i, j: at([0, 1, 0, 1, 1, 2, 0], i) == at([0, 1, 0, 1, 1, 2, 0], j),
        keys=QUERIES,
    ),
    Case(
        "documents of keys",
        lambda: masks.document(IDS[0], key_ids=KEY_IDS),
        lambda b, i, j: IDS[0][i] == KEY_IDS[j],
        1,
    ),
    Case(
        "cu_seqlens",
        lambda: masks.document(cu_seqlens=CU, key_cu_seqlens=KEY_CU),
        lambda b, i, j: (
            (at([0, 0, 0, 6, 6, 6, 6], i) <= j) & (j < at([2, 2, 2, 11, 11, 11, 11], i))
        ),
        1,
    ),
    Case(
        "causal documents",
        lambda: masks.causal() & masks.document(cu_seqlens=CU.int()),
        lambda b, i, j: (j <= i) & (at([0, 0, 0, 3, 3, 3, 3], i) <= j),
        1,
        keys=QUERIES,
    ),
    Case(
        "interval",
        lambda: masks.interval(torch.arange(QUERIES) - 2, 9),
        lambda b, i, j: (i - 2 <= j) & (j < 9),
        1,
    ),
    Case("dense", lambda: masks.dense(ALLOWED), lambda b, i, j: ALLOWED[b, 0, i, j]),
    Case(
        "dense and causal",
        lambda: masks.dense(ALLOWED) & masks.causal() & masks.key_padding(LENGTHS),
        lambda b, i, j: ALLOWED[b, 0, i, j] & (j <= i) & (j < at(LENGTHS, b)),
        1,
    ),
    Case(
        "dense or padding",
        lambda: masks.dense(ALLOWED) | masks.key_padding(LENGTHS),
        lambda b, i, j: ALLOWED[b, 0, i, j] | (j < at(LENGTHS, b)),
    ),
)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def allowed_by(parts: MaskParts, queries: int, keys: int) -> Tensor:
    allowed, bias = parts.dense(queries, keys)
    assert bias is None
    if allowed is None:
        allowed = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    return allowed.expand(BATCH, HEADS, queries, keys)


@all_cases
def test_mask_is_its_definition(case: Case) -> None:
    assert torch.equal(allowed_by(case.parts(), case.queries, case.keys), case.expected())


@all_cases
def test_intervals_are_few_and_as_kernels_expect_them(case: Case) -> None:
    parts = case.parts()
    if case.intervals == 0:
        assert parts.begin is None and parts.end is None
        return
    assert parts.begin is not None and parts.end is not None
    assert parts.begin.shape == parts.end.shape and parts.begin.stride() == parts.end.stride()
    assert parts.begin.dtype == parts.end.dtype == torch.int32
    intervals, *rest = parts.begin.shape
    assert intervals == case.intervals
    for size, full in zip(rest, (BATCH, HEADS, case.queries), strict=True):
        assert size in (1, full)
    for bound in (parts.begin, parts.end):
        assert bound.min() >= 0 and bound.max() <= case.keys


def test_only_dense_masks_need_memory_for_all_pairs() -> None:
    dense = {case.name for case in CASES if case.parts().allowed is not None}
    assert dense == {
        *("padding, holes", "scattered documents"),
        *("dense", "dense and causal", "dense or padding"),
    }
    holes = next(case for case in CASES if case.name == "padding, holes").parts().allowed
    assert holes is not None and holes.shape == (BATCH, 1, 1, KEYS)


small = st.integers(min_value=-3, max_value=9)
leaves = st.one_of(
    st.builds(
        lambda left, right, shift: masks.sliding_window(left, right, offset=shift),
        st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 4),
        small,
    ),
    st.lists(st.integers(0, 6), min_size=2, max_size=2).map(masks.key_padding),
    st.lists(small, min_size=5, max_size=5).map(lambda b: masks.interval(torch.tensor(b), 5)),
    st.lists(small, min_size=5, max_size=5).map(lambda e: masks.interval(1, torch.tensor(e))),
    st.integers(0, 6).map(masks.prefix),
    st.lists(st.integers(0, 2), min_size=5, max_size=5).map(
        lambda ids: masks.document(torch.tensor(ids), key_ids=torch.tensor([*sorted(ids), 9]))
    ),
    st.lists(st.booleans(), min_size=30, max_size=30).map(
        lambda values: masks.dense(torch.tensor(values).view(5, 6))
    ),
)
Tree = tuple[Mask, Callable[[], Tensor]]


def leaf(mask: Mask) -> Tree:
    return mask, lambda: in_full(mask)


def in_full(mask: Mask) -> Tensor:
    allowed, _ = mask.parts(2, 1, 5, 6, torch.get_default_device()).dense(5, 6)
    full = torch.ones(2, 1, 5, 6, dtype=torch.bool)
    return full if allowed is None else full & allowed


trees = st.recursive(
    leaves.map(leaf),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: (t[0][0] & t[1][0], lambda: t[0][1]() & t[1][1]())),
        st.tuples(inner, inner).map(lambda t: (t[0][0] | t[1][0], lambda: t[0][1]() | t[1][1]())),
        inner.map(lambda t: (~t[0], lambda: ~t[1]())),
    ),
    max_leaves=6,
)


@given(trees)
def test_combinations_are_those_of_boolean_tensors(tree: Tree) -> None:
    mask, expected = tree
    assert torch.equal(in_full(mask), expected())


def test_what_is_added_to_scores() -> None:
    first, second = torch.randn(QUERIES, KEYS), torch.randn(BATCH, 1, 1, KEYS)
    mask = masks.bias(first) & masks.alibi(HEADS, bottom_right=True) & masks.bias(second)
    mask = mask & masks.soft_cap(30) & masks.causal()
    parts = mask.parts(BATCH, HEADS, QUERIES, KEYS, torch.get_default_device())
    assert (parts.soft_cap, parts.highest, parts.slope_offset) == (30, 0, KEYS - QUERIES)
    slopes = torch.tensor([1 / 16, 1 / 256])
    distance = (torch.arange(QUERIES)[:, None] + KEYS - QUERIES - torch.arange(KEYS)).abs()
    _, bias = parts.dense(QUERIES, KEYS)
    torch.testing.assert_close(bias, first + second - slopes[:, None, None] * distance)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (8, [2.0**-h for h in range(1, 9)]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_slopes_of_a_number_of_heads_are_those_of_the_paper(
    heads: int, expected: list[float]
) -> None:
    parts = masks.alibi(heads).parts(2, heads, 3, 3, torch.get_default_device())
    torch.testing.assert_close(parts.slopes, torch.tensor([expected]))


def test_gradients_flow_to_every_bias() -> None:
    first, second = torch.randn(QUERIES, KEYS).requires_grad_(), torch.randn(KEYS).requires_grad_()
    mask = masks.bias(first) & masks.bias(second) & masks.causal()
    for _ in range(2):  # a second graph
        parts = mask.parts(BATCH, HEADS, QUERIES, KEYS, torch.get_default_device())
        assert parts.bias is not None
        parts.bias.sum().backward()
    torch.testing.assert_close(first.grad, torch.full_like(first, 2))
    torch.testing.assert_close(second.grad, torch.full_like(second, 2 * QUERIES))


def test_parts_are_kept_for_the_same_sizes() -> None:
    device = torch.get_default_device()
    mask = masks.causal() | masks.prefix([2, 4])
    with torch.inference_mode():
        parts = mask.parts(2, 3, 5, 6, device)
    assert mask.parts(2, 3, 5, 6, device) is parts
    assert parts.begin is not None and not parts.begin.is_inference()
    assert mask.parts(2, 3, 6, 6, device) is not parts
    for size in range(20):
        mask.parts(2, 3, size, 6, device)
    assert len(mask._kept) <= 8


def test_masks_can_be_pickled() -> None:
    for case in CASES:
        copy = pickle.loads(pickle.dumps(case.make()))
        parts = copy.parts(BATCH, HEADS, case.queries, case.keys, torch.get_default_device())
        assert torch.equal(allowed_by(parts, case.queries, case.keys), case.expected())


EMPTY = masks.causal() | masks.prefix(0)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 3), (2, 2, 0, 3), (2, 2, 3, 0), (1, 1, 1, 1)])
def test_empty_sizes(sizes: tuple[int, int, int, int]) -> None:
    for mask in (masks.causal(), EMPTY, ~EMPTY, masks.sliding_window(1) | masks.prefix(0)):
        allowed, _ = mask.parts(*sizes, torch.get_default_device()).dense(*sizes[2:])
        assert allowed is None or allowed.expand(sizes).shape == sizes
