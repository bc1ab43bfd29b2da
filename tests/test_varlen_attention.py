"""Packed sequences and jagged nested tensors: each sequence gets what it gets alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl import masks
from fastdl.functional import scaled_dot_product_attention, varlen_attn

HEADS, COLS = 2, 8
LENGTHS, KEY_LENGTHS = [3, 0, 17, 1, 40], [5, 4, 17, 9, 40]


def cu_seqlens(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def packed(lengths: list[int], heads: int = HEADS, cols: int = COLS) -> Tensor:
    return torch.randn(sum(lengths), heads, cols)


def alone(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float | None = None
) -> Tensor:
    """One sequence (L, H, D) in float64; zeros for a query without keys."""
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if allowed is not None:
        lowest = torch.finfo(torch.float64).min  # no NaN where nothing is allowed
        weights = scores.masked_fill(~allowed, lowest).softmax(-1) * allowed
    else:
        weights = scores.softmax(-1)
    return (weights @ v).transpose(0, 1)


def window(queries: int, keys: int, left: int, right: int) -> Tensor:
    """Of torch's window_size, the last query being at the last key."""
    distance = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)
    return (distance >= (-left if left >= 0 else -math.inf)) & (
        distance <= (right if right >= 0 else math.inf)
    )


def expected(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: list[int], left: int, right: int, **options: Any
) -> Tensor:
    rows = zip(q.split(LENGTHS), k.split(key_lengths), v.split(key_lengths), strict=True)
    return torch.cat(
        [alone(*one, window(len(one[0]), len(one[1]), left, right), **options) for one in rows]
    )


@pytest.mark.parametrize("key_lengths", [LENGTHS, KEY_LENGTHS])
@pytest.mark.parametrize("size", [(-1, -1), (-1, 0), (3, 0), (2, 4), (0, -1)])
def test_sequences_attend_alone(key_lengths: list[int], size: tuple[int, int]) -> None:
    tensors = [packed(LENGTHS), packed(key_lengths), packed(key_lengths, cols=5)]
    leaves = [t.requires_grad_() for t in tensors]
    cu = cu_seqlens(LENGTHS), cu_seqlens(key_lengths)
    output = varlen_attn(*leaves, *cu, max(LENGTHS), max(key_lengths), window_size=size)
    exact = expected(*leaves, key_lengths, *size)
    torch.testing.assert_close(output, exact.float(), rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, grad)
    exact_gradients = torch.autograd.grad(exact, leaves, grad.double())
    for one, other in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_causal_is_a_window_and_options_are_those_of_attention() -> None:
    q, k, v = packed(LENGTHS, 4), packed(LENGTHS), packed(LENGTHS)
    cu = cu_seqlens(LENGTHS, torch.int64)
    options: dict[str, Any] = {"enable_gqa": True, "scale": 0.3}
    causal = varlen_attn(q, k, v, cu, cu, 40, 40, True, **options)
    torch.testing.assert_close(
        causal, expected(q, k, v, LENGTHS, -1, 0, scale=0.3).float(), rtol=1e-4, atol=1e-5
    )
    windowed = varlen_attn(q, k, v, cu, cu, 40, 40, window_size=(-1, 0), **options)
    torch.testing.assert_close(windowed, causal, rtol=0, atol=0)
    ones = torch.ones_like(v)
    dropped = varlen_attn(q, k, ones, cu, cu, 40, 40, dropout_p=0.5, **options)
    assert dropped.std() > 0.1 and abs(dropped.mean() - 1) < 0.2


def test_keys_that_are_not_used_yet_do_not_count() -> None:
    used = [2, 4, 17, 1, 30]
    q, k, v = packed(LENGTHS), packed(KEY_LENGTHS), packed(KEY_LENGTHS)
    cu_q, cu_k = cu_seqlens(LENGTHS), cu_seqlens(KEY_LENGTHS)
    output = varlen_attn(
        q, k, v, cu_q, cu_k, 40, 40, window_size=(5, 0), seqused_k=torch.tensor(used)
    )
    shorter = [
        torch.cat([x[:n] for x, n in zip(t.split(KEY_LENGTHS), used, strict=True)]) for t in (k, v)
    ]
    exact = expected(q, *shorter, used, 5, 0)
    torch.testing.assert_close(output, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.cpu_only("values are looked at there alone")
def test_wrong_arguments_are_named() -> None:
    q, cu = packed([3, 4]), cu_seqlens([3, 4])

    def call(*arguments: Any, **options: Any) -> None:
        first = [q, q, q, cu, cu, 4, 4]
        first[: len(arguments)] = arguments
        varlen_attn(*first, **options)

    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((q[None],), {}, r"query of shape \(T, H, D\), got \(1, 7, 2, 8\)"),
        ((q, q, q, cu.float()), {}, r"cu_seq_q of shape \(N \+ 1\) as integers .* torch.float32"),
        ((q, q, q, cu.flip(0)), {}, "cu_seq_q to begin with 0, got 7"),
        ((q, q, q, torch.tensor([0, 8, 7])), {}, r"cu_seq_q to rise, got \[0, 8, 7\]"),
        ((q, q, q, cu, cu + torch.tensor([0, 0, 1])), {}, "cu_seq_k to end with .* 7, got 8"),
        ((q, q, q, cu, torch.tensor([0, 7])), {}, "of one length, got 3 and 2"),
        ((), {"window_size": (-2, 0)}, r"at least -1, got \(-2, 0\)"),
        ((), {"seqused_k": torch.tensor([1])}, r"seqused_k of shape \(2,\), got \(1,\)"),
        ((), {"seqused_k": torch.tensor([4, 4])}, "seqused_k of at most the keys"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)


def nested(values: Tensor, offsets: Tensor) -> Tensor:
    """(B, H, L of each, D)."""
    return torch.nested.nested_tensor_from_jagged(values, offsets).transpose(1, 2)


def values_of(output: Tensor) -> Tensor:
    return output.transpose(1, 2).values()


@pytest.mark.parametrize("causal", [False, True])
def test_nested_tensors_come_back_nested(causal: bool) -> None:
    tensors = [packed(LENGTHS), packed(KEY_LENGTHS), packed(KEY_LENGTHS, cols=5)]
    leaves = [t.requires_grad_() for t in tensors]
    offsets, key_offsets = (cu_seqlens(n, torch.int64) for n in (LENGTHS, KEY_LENGTHS))
    q, k, v = map(nested, leaves, (offsets, key_offsets, key_offsets))
    output = scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert output.is_nested and output.layout == torch.jagged and output.shape[:3] == q.shape[:3]
    exact = []
    for one in zip(*map(Tensor.split, leaves, (LENGTHS, KEY_LENGTHS, KEY_LENGTHS)), strict=True):
        allowed = torch.ones(len(one[0]), len(one[1]), dtype=torch.bool)
        exact.append(alone(*one, allowed.tril() if causal else None))
    torch.testing.assert_close(values_of(output), torch.cat(exact).float(), rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(torch.cat(exact))
    gradients = torch.autograd.grad(values_of(output), leaves, grad.float())
    exact_gradients = torch.autograd.grad(torch.cat(exact), leaves, grad)
    for one, other in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nested_tensors_take_windows_of_positions() -> None:
    offsets = cu_seqlens(LENGTHS, torch.int64)
    tensors = [packed(LENGTHS) for _ in range(3)]
    q, k, v = (nested(tensor, offsets) for tensor in tensors)
    mask = masks.sliding_window(2, 1)
    output = scaled_dot_product_attention(q, k, v, mask)
    exact = expected(*tensors, LENGTHS, 2, 1)
    torch.testing.assert_close(values_of(output), exact.float(), rtol=1e-4, atol=1e-5)
    other = nested(packed(KEY_LENGTHS), cu_seqlens(KEY_LENGTHS, torch.int64))
    with pytest.raises(ValueError, match="of the same lengths with a Mask"):
        scaled_dot_product_attention(q, other, other, mask)
