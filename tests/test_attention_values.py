"""Attention next to torch's in its values: sizes, dtypes, masks, special numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastdl
from tests import reference
from tests.attention_calls import attention, check, tensors_of
from tests.compare import assert_same_bits
from tests.tensors import DTYPES, REDUCED_DTYPES, dtype_name, random_tensor

kernel_dtypes = pytest.mark.parametrize("dtype", [torch.float32, *REDUCED_DTYPES], ids=dtype_name)
# Around the tiles of the kernels (16 x 64 and 16 x 16), and primes
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 63, 64, 65, 97, 255, 256, 257)
HEAD_DIMS = (1, 3, 8, 16, 31, 64, 96, 128, 200, 256)

function = fastdl.functional.scaled_dot_product_attention


def bool_mask(*shape: int) -> Tensor:
    """Some rows have no keys, some tiles no pairs, others all."""
    mask = torch.rand(shape) < 0.5
    mask[..., : shape[-2] // 2, : shape[-1] // 2] = True
    mask[..., shape[-2] // 2 :, : shape[-1] // 2] = False
    if shape[-2] > 1:
        mask[..., shape[-2] // 3, :] = False
    return mask


def float_mask(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random_tensor(shape, dtype).masked_fill(~bool_mask(*shape), -math.inf)


@pytest.mark.every_isa
@pytest.mark.parametrize("is_causal", [False, True])
def test_lengths_around_tiles_and_vectors(is_causal: bool) -> None:
    for i, queries in enumerate(LENGTHS):
        for keys in (LENGTHS[-1 - i], queries, 40):
            tensors = tensors_of(queries, keys, 8, batch=1)
            check(attention(is_causal=is_causal), *tensors, label=f"{queries} x {keys}")


@pytest.mark.every_isa
@kernel_dtypes
def test_head_dims(dtype: torch.dtype) -> None:
    for head_dim in HEAD_DIMS:
        for value_dim in (head_dim, 24):
            tensors = tensors_of(19, 35, head_dim, value_dim, batch=1, dtype=dtype)
            check(attention(), *tensors, label=f"{head_dim}, {value_dim}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dtypes_with_every_kind_of_mask(dtype: torch.dtype) -> None:
    tensors = tensors_of(33, 70, 16, dtype=dtype)
    check(attention(), *tensors)
    check(attention(is_causal=True), *tensors)
    check(attention(attn_mask=bool_mask(33, 70)), *tensors)
    check(attention(), *tensors, random_tensor((33, 70), dtype))


@pytest.mark.parametrize("dtype", REDUCED_DTYPES, ids=dtype_name)
def test_a_float32_bias_of_16_bit_tensors(dtype: torch.dtype) -> None:
    # Not the accuracy rule: torch has all scores in float32 then, we the output in 16 bits.
    leaves = [t.requires_grad_() for t in tensors_of(33, 70, 16, dtype=dtype)]
    leaves.append(random_tensor((2, 1, 1, 70)).requires_grad_())
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        output = module.scaled_dot_product_attention(*leaves)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for fast, native in zip(*results, strict=True):
        torch.testing.assert_close(fast, native, rtol=2e-2, atol=4e-2)


@pytest.mark.every_isa
@pytest.mark.parametrize(
    "shape",
    [(37, 150), (1, 150), (37, 1), (2, 37, 150), (2, 2, 37, 150), (2, 1, 1, 150), (1, 2, 37, 1)],
    ids=str,
)
def test_masks_of_every_broadcast_shape(shape: tuple[int, ...]) -> None:
    tensors = tensors_of(37, 150, 8)
    check(attention(attn_mask=bool_mask(*shape)), *tensors)
    check(attention(attn_mask=float_mask(*shape)), *tensors)
    check(attention(), *tensors, random_tensor(shape))  # with its gradient


@pytest.mark.every_isa
@kernel_dtypes
def test_queries_without_keys_give_zeros_and_no_gradient(dtype: torch.dtype) -> None:
    tensors = tensors_of(20, 70, 8, dtype=dtype)
    mask = torch.ones(20, 70, dtype=torch.bool)
    mask[3] = mask[16:] = False
    for given in (mask, torch.zeros(20, 70).masked_fill(~mask, -math.inf), torch.zeros_like(mask)):
        bias = given.clone().requires_grad_() if given.is_floating_point() else given
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = function(*leaves, attn_mask=bias)
        grads = torch.autograd.grad(output.float().sin().sum(), leaves)
        alone = ~mask.any(1) if given.any() else slice(None)
        assert (output[:, :, alone] == 0).all() and (grads[0][:, :, alone] == 0).all()
        check(attention(attn_mask=given), *tensors)
        if not given.any():
            assert all((grad == 0).all() for grad in grads)


@pytest.mark.every_isa
def test_nan_and_infinities_stay_in_their_rows() -> None:
    query, key, value = tensors_of(40, 70, 8)
    query[0, 0, 5, 3], query[0, 1, 17, 0], query[1, 0, 39, 7] = math.nan, math.inf, -math.inf
    output = function(query, key, value)
    native = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert_same_bits(output.isnan(), native.isnan())
    torch.testing.assert_close(output, native, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.every_isa
def test_nan_in_a_key_reaches_the_queries_that_see_it() -> None:
    query, key, value = tensors_of(40, 70, 8)
    key[0, 0, 20, 1], value[1, 1, 30, 2] = math.nan, math.inf
    output = function(query, key, value, is_causal=True)
    assert output[0, 0, 20:].isnan().all() and output[0, 0, :20].isfinite().all()
    assert (output[1, 1, 30:, 2] == math.inf).all() and output[1, 0].isfinite().all()


@pytest.mark.every_isa
def test_special_values_of_a_bias() -> None:
    tensors = tensors_of(8, 70, 8)
    bias = torch.zeros(8, 70)
    bias[0], bias[1, 3], bias[2, 65] = -math.inf, math.nan, math.inf
    bias[3, 1:], bias[4, 7], bias[5], bias[6, ::2] = -math.inf, 1e30, -1e30, -3e4
    output = function(*tensors, attn_mask=bias)
    native = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=bias)
    torch.testing.assert_close(output, native, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.every_isa
@kernel_dtypes
def test_large_scores(dtype: torch.dtype) -> None:
    for factor in (5.0, 30.0):
        query, key, value = tensors_of(64, 200, 32, dtype=dtype)
        output = function(query * factor, key, value)
        exact = reference.scaled_dot_product_attention(query * factor, key, value)
        native = torch.nn.functional.scaled_dot_product_attention(query * factor, key, value)
        errors = [(y.double() - exact).abs().mean() for y in (output, native)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps


@pytest.mark.every_isa
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_heads_that_share_keys(kv_heads: int) -> None:
    for queries in (1, 21):
        tensors = tensors_of(queries, 70, 8, heads=6, kv_heads=kv_heads)
        check(attention(enable_gqa=True), *tensors)
        check(attention(enable_gqa=True, is_causal=True), *tensors)


@pytest.mark.every_isa
@kernel_dtypes
def test_one_query_of_many_keys(dtype: torch.dtype) -> None:
    for keys in (1, 100, 1023, 2100):
        tensors = tensors_of(1, keys, 64, batch=1, heads=3, dtype=dtype)
        check(attention(), *tensors, label=f"{keys} keys")
        check(attention(attn_mask=bool_mask(1, keys)), *tensors, label=f"{keys} keys")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("is_causal", [False, True])
def test_larger_sizes_on_several_threads(is_causal: bool) -> None:
    for shape in ((300, 500, 40), (700, 65, 64)):
        tensors = tensors_of(*shape, batch=1, heads=3)
        call = attention(is_causal=is_causal)
        check(call, *tensors, label=str(shape))
        check(attention(), *tensors, random_tensor((3, *shape[:2])))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    query = torch.empty(1, 1 << 16, 257, 128, dtype=torch.bfloat16).normal_()
    assert query.numel() > 2**31
    key = query[:, -1:]
    output = function(query, key, key, enable_gqa=True)
    native = torch.nn.functional.scaled_dot_product_attention(query[:, -1:], key, key)
    torch.testing.assert_close(output[:, -1:], native, rtol=2e-2, atol=2e-2)
