"""dropout: its mask as random numbers, and everything else next to torch's."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastdl
from fastdl.functional import dropout
from tests.compare import assert_same_bits, assert_same_metadata
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, LAYOUTS, SIZES, dtype_name, generator_state, random_tensor

OP = torch.ops.fastdl.dropout
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Philox4x32 of Salmon et al. with 7 rounds."""
    c0, c1, c2, c3 = counter
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(7):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = second >> 32 ^ c1 ^ keys[0], second & 0xFFFFFFFF
        c2, c3 = first >> 32 ^ c3 ^ keys[1], first & 0xFFFFFFFF
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c0, c1, c2, c3


def kept(index: int, p: float, seed: int) -> bool:
    """Whether the element at this index in memory is kept: the definition, in plain numbers."""
    block = index // 256 * 32 + index // 4 % 32
    words = philox((block & 0xFFFFFFFF, block >> 32, 0, 0), seed)
    half = index // 128 % 2
    bits = (words[2 * half] | words[2 * half + 1] << 32) >> 16 * (index % 4) & 0xFFFF
    further = philox((index & 0xFFFFFFFF, index >> 32, 1, 0), seed)[0]
    return (bits << 32 | further) >= round(p * 2**48)


def mask(size: int, p: float, seed: int) -> Tensor:
    return OP(torch.ones(size), p, seed) != 0


@pytest.mark.every_isa
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-3, 1 - 1e-12])
def test_mask_is_that_of_the_definition(p: float) -> None:
    for size in (1, 5, 31, 129, 700):
        for seed in (0, 1, 2**63 - 1, 0x0123456789ABCDEF):
            expected = torch.tensor([kept(i, p, seed) for i in range(size)])
            assert torch.equal(mask(size, p, seed), expected)


@pytest.mark.every_isa
def test_elements_whose_first_bits_are_those_of_p_are_decided_by_further_ones() -> None:
    size, seed = 200_000, 5
    leading = 0x2000  # about three elements have these 16 bits
    below, above = (mask(size, leading / 2**16 + d, seed) for d in (0.0, 2**-16))
    between = (below != above).nonzero().flatten().tolist()
    assert between and not (above & ~below).any()
    for half in (0.25, 0.5, 0.75):
        p = leading / 2**16 + half * 2**-16
        got = mask(size, p, seed)
        assert [bool(got[i]) for i in between] == [kept(i, p, seed) for i in between]


@pytest.mark.every_isa
@all_dtypes
def test_every_size_has_the_values_of_the_formula(dtype: torch.dtype) -> None:
    for size in SIZES:
        x = random_tensor((size,), dtype)
        y = OP(x, 0.3, 11)
        expected = x.double() * mask(size, 0.3, 11) / 0.7
        torch.testing.assert_close(y, expected.to(dtype))


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_values_strides_and_gradients_of_its_mask(
    dtype: torch.dtype, layout: str
) -> None:
    for shape in ((7, 33), (2, 3, 5, 9), (2, 3, 4, 2, 5)):
        x = random_tensor(shape, dtype, layout).requires_grad_()
        with fastdl.strict():
            y = dropout(x, 0.4)
        native = torch.nn.functional.dropout(x, 0.4)
        assert_same_metadata(y, native)
        noise = (y != 0).double() / 0.6
        torch.testing.assert_close(y.double(), x.double() * noise, rtol=1e-2, atol=1e-2)
        for grad_layout in ("contiguous", "transposed", "stepped"):
            grad = random_tensor(shape, dtype, grad_layout)
            with fastdl.strict():
                (got,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            torch.testing.assert_close(got, (grad.double() * noise).to(dtype))


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.8])
@pytest.mark.usefixtures("threads")
def test_shares_and_products_of_neighbours_are_those_of_independent_elements(p: float) -> None:
    size = 1 << 20
    first, second = (dropout(torch.ones(size), p) != 0 for _ in range(2))
    deviation = math.sqrt(p * (1 - p) / size)
    products = {"mean": first.double().mean().item() - (1 - p)}
    centred = first.double() - (1 - p)
    for distance in (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 512, 768, 4096):
        product = (centred[distance:] * centred[:-distance]).mean().item()
        products[f"distance {distance}"] = product / math.sqrt(p * (1 - p))
    other = second.double() - (1 - p)
    products["the next call"] = (centred * other).mean().item() / math.sqrt(p * (1 - p))
    for name, value in products.items():
        assert abs(value) < 4.5 * deviation, name
    # The numbers of kept elements in rows of 1024 vary as binomial ones do.
    counts = first.view(-1, 1024).double().sum(1)
    variance = 1024 * p * (1 - p)
    assert abs(counts.var().item() / variance - 1) < 5 * math.sqrt(2 / len(counts))


def test_seeds_that_differ_in_one_bit_have_independent_masks() -> None:
    size, p = 1 << 16, 0.5
    base = mask(size, p, 7).double() - 0.5
    for bit in range(0, 63, 3):
        product = (base * (mask(size, p, 7 ^ 1 << bit).double() - 0.5)).mean().item()
        assert abs(product) < 4.5 * 0.25 / math.sqrt(size), bit


def test_same_generator_state_gives_the_same_mask_and_each_call_another() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert_same_bits(dropout(x), first)
    assert_same_bits(dropout(x), second)
    assert not torch.equal(first, second)


def test_nothing_is_drawn_where_nothing_is_random() -> None:
    x, state = torch.ones(10), generator_state()
    with fastdl.strict():
        assert dropout(x, 0.5, training=False) is x
        assert dropout(x, 0.0) is x
        assert dropout(x[:0], 0.5).numel() == 0
        assert (dropout(x, 1.0) == 0).all()
    assert torch.equal(generator_state(), state)
    dropout(x)
    assert not torch.equal(generator_state(), state)


@pytest.mark.usefixtures("threads")
def test_mask_is_the_same_for_every_number_of_threads() -> None:
    x = random_tensor((3_000_001,))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(OP(x, 0.1, 42))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])
    assert_same_bits(OP(x[:4097], 0.1, 42), results[0][:4097])


def test_nan_and_infinities_are_not_hidden() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf] * 50)
    y, p1 = dropout(x, 0.5), dropout(x, 1.0)
    assert y[0::3].isnan().all() and p1.isnan().all()
    assert (y[1::3].isnan() | (y[1::3] == math.inf)).all()
    assert y[1::3].isnan().any() and (y[1::3] == math.inf).any()


def test_derivatives_of_every_order_are_those_of_the_mask() -> None:
    leaf = random_tensor((3, 50), torch.float64).requires_grad_()

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return dropout(x, 0.4).sin()

    assert gradcheck(call, [leaf], fast_mode=True)
    assert gradgradcheck(call, [leaf], fast_mode=True)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_recomputes_with_the_same_mask(use_reentrant: bool) -> None:
    leaf = random_tensor((50, 20)).requires_grad_()
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant)):
        torch.manual_seed(8)
        output = run(lambda x: dropout(x.sin(), 0.3).cos(), leaf)  # type: ignore[no-untyped-call]
        torch.rand(3)
        output.sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
        leaf.grad = None
    assert_same_bits(*grads)


@all_dtypes
def test_in_place_with_and_without_a_graph(dtype: torch.dtype) -> None:
    leaf = random_tensor((30, 20), dtype).requires_grad_()
    torch.manual_seed(2)
    expected = dropout(leaf, 0.25)
    grads = [torch.autograd.grad(expected.sum(), leaf)[0]]
    for make in (lambda: leaf * 1, lambda: leaf.detach().clone()):
        x = make()
        version = x._version
        torch.manual_seed(2)
        with fastdl.strict():
            assert dropout(x, 0.25, inplace=True) is x
        assert x._version > version
        torch.testing.assert_close(x, expected, check_stride=True)
        if x.requires_grad:
            grads.append(torch.autograd.grad(x.sum(), leaf)[0])
    torch.testing.assert_close(*grads)
    assert_same_outcome(
        lambda: dropout(torch.ones(3, requires_grad=True), inplace=True),
        lambda: torch.nn.functional.dropout(torch.ones(3, requires_grad=True), inplace=True),
    )


@pytest.mark.parametrize(
    "p", [-0.1, 1.1, 0.0, 1.0, "0.5", None, torch.tensor(0.0), True, 10**400, 1j], ids=repr
)
def test_every_kind_of_p_means_what_it_means_to_torch(p: Any) -> None:
    x = torch.ones(5)
    options: dict[str, bool]
    for options in ({}, {"training": False}, {"inplace": True}):
        assert_same_outcome(
            lambda: dropout(x.clone(), p, **options),  # noqa: B023
            lambda: torch.nn.functional.dropout(x.clone(), p, **options),  # noqa: B023
        )


@pytest.mark.parametrize("training", [1, 0, "yes", None])
def test_other_kinds_of_training_are_handed_over(training: Any) -> None:
    assert_same_outcome(
        lambda: dropout(torch.ones(5), 0.0, training),
        lambda: torch.nn.functional.dropout(torch.ones(5), 0.0, training),
    )


def test_transforms_are_handed_over() -> None:
    x = torch.ones(4, 50)
    y = torch.func.vmap(dropout, randomness="different")(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert fastdl.report().hand_overs
    leaf = x.clone().requires_grad_()
    z = dropout(leaf)
    (batched,) = torch.autograd.grad(z, leaf, torch.ones(3, 4, 50), is_grads_batched=True)
    assert torch.equal(batched, z.detach().expand(3, 4, 50))


def test_module_is_torchs_and_follows_its_mode() -> None:
    module, x = fastdl.convert(torch.nn.Dropout(0.3)), torch.ones(2000)
    assert type(module) is fastdl.nn.Dropout and repr(module) == repr(torch.nn.Dropout(0.3))
    assert type(copy.deepcopy(module)) is fastdl.nn.Dropout
    with fastdl.strict():
        assert abs((module(x) == 0).double().mean().item() - 0.3) < 0.06
        assert module.eval()(x) is x
    compiled = torch.compile(module.train(), fullgraph=True, backend="aot_eager")
    assert abs((compiled(x) == 0).double().mean().item() - 0.3) < 0.06
    assert type(fastdl.revert(module)) is torch.nn.Dropout


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    size, p, seed = 2**31 + 4099, 0.3, 11
    leaf = torch.ones(size, dtype=torch.bfloat16).requires_grad_()
    output = OP(leaf, p, seed)
    (grad,) = torch.autograd.grad(output, leaf, leaf.detach())
    for start in (0, size - 4199, size - 100):
        expected = torch.tensor([kept(i, p, seed) for i in range(start, start + 100)])
        for got in (output, grad):
            assert torch.equal(got[start : start + 100] != 0, expected)
