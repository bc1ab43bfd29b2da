"""scaled_dot_product_attention: layouts, shapes, dropout, gradients and their derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastdl
from fastdl import masks
from tests import reference
from tests.attention_calls import attention, check, has_kernel, heads_last, tensors_of
from tests.compare import assert_as_accurate_as_torch, assert_same_bits
from tests.tensors import LAYOUTS, dtype_name, generator_state, random_tensor

OPS = torch.ops.fastdl
P = 0.3

function = fastdl.functional.scaled_dot_product_attention
float_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name
)


@float_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout(layout: str, dtype: torch.dtype) -> None:
    if not has_kernel(dtype):
        pytest.skip("on CPUs with AVX-512, native torch computes 16 bits")
    tensors = tensors_of(19, 35, 8, dtype=dtype)
    for number in range(3):
        own = [LAYOUTS[layout](t) if i == number else t for i, t in enumerate(tensors)]
        with fastdl.strict():
            output = function(*own)
        assert_same_bits(output, function(*[t.contiguous() for t in own]))
    mask = LAYOUTS[layout](torch.rand(2, 2, 19, 35) < 0.5)
    assert_same_bits(function(*tensors, mask), function(*tensors, mask.contiguous()))
    bias = LAYOUTS[layout](random_tensor((2, 2, 19, 35), dtype)).requires_grad_()
    results = []
    for given in (bias, bias.detach().contiguous().requires_grad_()):
        output = function(*tensors, given)
        results.append([output, *torch.autograd.grad(output.float().sin().sum(), given)])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


@pytest.mark.cpu_only("the order that torch has there")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_output_has_the_memory_order_of_the_query(order: tuple[int, ...]) -> None:
    sizes, back = (2, 3, 5, 8), [*(order.index(d) for d in range(3)), 3]
    query = torch.randn([sizes[d] for d in order] + [8]).permute(back)
    check(attention(), query, *tensors_of(5, 7, 8, heads=3)[1:])  # compares strides


def test_heads_side_by_side_are_neither_copied_nor_is_their_output() -> None:
    packed = torch.randn(2, 19, 3, 4, 8)  # one projection for query, key and value
    query, key, value = (x.transpose(1, 2).requires_grad_() for x in packed.unbind(2))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        output = function(query, key, value, is_causal=True).transpose(1, 2)
        flat = output.reshape(2, 19, 32)
        torch.autograd.grad(flat, [query, key, value], torch.ones(2, 19, 32))
    names = {event.key for event in profiler.key_averages()}
    assert not names & {"aten::contiguous", "aten::clone", "aten::copy_"}, sorted(names)
    assert flat.data_ptr() == output.data_ptr()


def test_numbers_of_dimensions_and_broadcast_batches() -> None:
    query, key, value = tensors_of(5, 7, 8)
    for call in (attention(), attention(is_causal=True)):
        check(call, query[0], key[0], value[0])
        check(call, query[0, 0], key[0, 0], value[0, 0])
        check(call, query[None], key[None], value[None])
        check(call, query, key[:1], value)
        check(call, query, key, value[:, :1])
        check(call, query[:1, :1], key, value)
        check(call, query, key[:1, :1], value[:1, :1])
    for shape in ((5, 7), (2, 5, 7), (2, 2, 5, 7), (1, 2, 1, 5, 7)):
        check(attention(), query[None], key[None], value[None], torch.randn(shape))
        check(attention(attn_mask=torch.rand(shape) < 0.5), query[None], key[None], value[None])


@pytest.mark.parametrize("wanted", range(1, 16))
def test_only_the_gradients_that_are_wanted(wanted: int) -> None:
    tensors = [*tensors_of(5, 7, 8), torch.randn(5, 7)]
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        own = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        module.scaled_dot_product_attention(*own).sin().sum().backward()
        results.append([t.grad for t in own])
    for fast, native in zip(*results, strict=True):
        assert (fast is None) == (native is None)
        torch.testing.assert_close(fast, native, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("threads")
@float_dtypes
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    leaves = [t.requires_grad_() for t in tensors_of(150, 300, 16, heads=3, dtype=dtype)]
    bias = random_tensor((3, 1, 300), dtype).requires_grad_()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        output = function(*leaves, bias, dropout_p=P)
        grads = torch.autograd.grad(output.float().sin().sum(), [*leaves, bias])
        runs.append([output, *grads])
    for one, other in zip(*runs, strict=True):
        assert_same_bits(one, other)


# Of torch.ops.fastdl.attention behind query, key and value, and the same for the formula
def arguments(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    options: dict[str, Any] = dict.fromkeys(
        ("allowed", "tiles", "bias", "begin", "end", "slopes", "lowest", "highest")
    )
    options |= {"slope_offset": 0, "soft_cap": 0.0, "scale": 0.4, "dropout_p": 0.0, "seed": 11}
    exact: dict[str, Any] = {"scale": 0.4, "enable_gqa": True}
    distance = torch.arange(70) - torch.arange(19)[:, None]
    if kind == "allowed":
        options["allowed"] = torch.rand(2, 1, 19, 70) < 0.5
        exact["attn_mask"] = options["allowed"]
    elif kind == "band":
        options |= {"lowest": -4, "highest": 9}
        exact["attn_mask"] = (distance >= -4) & (distance <= 9)
    elif kind == "intervals":
        options["begin"] = torch.tensor([0, 40], dtype=torch.int32).view(2, 1, 1, 1)
        options["end"] = torch.tensor([7, 66], dtype=torch.int32).view(2, 1, 1, 1)
        col = torch.arange(70)
        exact["attn_mask"] = ((col < 7) | ((col >= 40) & (col < 66))).expand(19, 70)
    elif kind == "slopes":
        options |= {"slopes": torch.rand(1, 4), "slope_offset": 51, "soft_cap": 2.0}
        exact["attn_mask"] = -options["slopes"][..., None, None] * (distance - 51).abs()
        exact["soft_cap"] = 2.0
    return options, exact


@pytest.mark.every_isa
@pytest.mark.parametrize("dropout_p", [0.0, P])
@pytest.mark.parametrize("kind", ["plain", "allowed", "band", "intervals", "slopes", "bias"])
def test_every_option_in_value_and_two_derivatives(kind: str, dropout_p: float) -> None:
    tensors = tensors_of(19, 70, 8, 5, heads=4, kv_heads=2)
    options, exact = arguments(kind)
    options["dropout_p"] = dropout_p
    if dropout_p > 0:
        exact["kept"] = OPS.attention_kept(*tensors[:2], dropout_p, options["seed"])
    if kind == "bias":
        tensors.append(torch.randn(1, 4, 19, 1))

    def fast(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor = OPS.attention(query, key, value, **(options | {"bias": bias}))[0]
        return output

    def formula(*given: Tensor) -> Tensor:
        query, key, value, *bias = given
        mask = {"attn_mask": bias[0]} if bias else {}
        return reference.scaled_dot_product_attention(query, key, value, **(exact | mask))

    def results(call: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        output = call(*leaves)
        grad = torch.linspace(-1, 1, output.numel(), dtype=dtype).reshape(output.shape)
        once = torch.autograd.grad(output, leaves, grad)
        grads = torch.autograd.grad(call(*leaves), leaves, grad, create_graph=True)
        total = torch.stack([g.sin().sum() for g in grads]).sum()
        return [output, *once, *grads, *torch.autograd.grad(total, leaves)]

    expected = results(formula, torch.float64)
    for fast_one, right in zip(results(fast, torch.float32), expected, strict=True):
        largest = right.abs().max().item()
        torch.testing.assert_close(fast_one.double(), right, rtol=0, atol=1e-5 * (largest + 1))


@float_dtypes
def test_dropout_keeps_a_share_and_the_mean(dtype: torch.dtype) -> None:
    query, key, _ = tensors_of(64, 128, 8, dtype=dtype)
    value = torch.ones(2, 2, 128, 8, dtype=dtype)
    output = function(query, key, value, dropout_p=P).float()
    assert abs(output.mean().item() - 1) < 0.02 and output.std() > 0.02
    kept = OPS.attention_kept(query, key, P, 5)
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - P)])
    share = (kept > 0).double()
    assert abs(share.mean().item() - (1 - P)) < 4 * (P * (1 - P) / share.numel()) ** 0.5
    for dim in range(4):  # no row, column or head is like another
        first, second = share.select(dim, 0), share.select(dim, 1)
        assert abs((first * second).mean().item() - (1 - P) ** 2) < 0.03


def test_dropout_draws_one_seed_and_repeats_it() -> None:
    tensors = [t.requires_grad_() for t in tensors_of(19, 35, 8)]
    torch.manual_seed(5)
    first, state = function(*tensors, dropout_p=P), generator_state()
    second = function(*tensors, dropout_p=P)
    torch.manual_seed(5)
    again = function(*tensors, dropout_p=P)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(generator_state(), state)
    function(*tensors)
    assert torch.equal(generator_state(), state)  # nothing is drawn without dropout
    checkpoint = torch.utils.checkpoint.checkpoint
    torch.manual_seed(5)
    repeated = checkpoint(lambda *t: function(*t, dropout_p=P), *tensors, use_reentrant=False)
    grads = [torch.autograd.grad(y.sin().sum(), tensors) for y in (repeated, again)]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 19, 35), (1, 1, 1, 35), (2, 1, 19, 1)], ids=str)
def test_gradient_of_an_expanded_bias_is_that_of_every_element(shape: tuple[int, ...]) -> None:
    tensors = tensors_of(19, 35, 8, heads=3)
    bias = torch.randn(shape).requires_grad_()
    whole = bias.expand(2, 3, 19, 35)
    grads = [
        torch.autograd.grad(function(*tensors, given).sin().sum(), bias) for given in (bias, whole)
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    exact_bias = bias.detach().double().requires_grad_()
    exact = reference.scaled_dot_product_attention(*tensors, exact_bias).sin().sum()
    (right,) = torch.autograd.grad(exact, exact_bias)
    assert_as_accurate_as_torch(
        grads[0][0], right.float(), right, gradient=True, atol=1e-5, label=str(shape)
    )


def test_masks_that_are_not_tensors() -> None:
    tensors = [heads_last(t) for t in tensors_of(19, 35, 8)]
    mask = masks.sliding_window(4) & masks.key_padding([20, 35])
    with fastdl.strict():
        output = function(*tensors, mask)
        three = function(*(t[0] for t in tensors), masks.causal())
    allowed, _ = mask.parts(2, 2, 19, 35, output.device).dense(19, 35)
    torch.testing.assert_close(output, function(*tensors, allowed), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(three, function(*tensors, is_causal=True)[0], rtol=1e-5, atol=1e-6)
    # By torch: other dtypes, with a soft cap too.
    for given in (mask, mask & masks.soft_cap(3.0), masks.alibi(2) & masks.soft_cap(3.0)):
        exact = function(*(t.double() for t in tensors), given, enable_gqa=True)
        torch.testing.assert_close(function(*tensors, given).double(), exact, rtol=1e-4, atol=1e-5)
