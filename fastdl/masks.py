"""Masks of attention that compose with ``&``, ``|`` and ``~`` and cost no L x S memory.

    from fastdl import masks
    mask = masks.causal() & masks.key_padding(lengths)
    y = fastdl.functional.scaled_dot_product_attention(query, key, value, mask)

A mask says which pairs of query i and key j count, for any batch B, heads H, L queries and S keys.
A causal mask or a sliding window stays two numbers, most others become intervals of keys a query:
memory grows with L, not with L S, and kernels skip what lies outside. docs/attention.md has what
each costs. Tensors that a mask was made of may not change: what it becomes is kept for later calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastdl.ops import mask_values as values
from fastdl.ops.mask import Alibi, Mask, MaskParts
from fastdl.ops.mask_regions import Pairs, Sizes, as_4d, interval_pairs

__all__ = [
    "Mask",
    "MaskParts",
    "alibi",
    "bias",
    "causal",
    "dense",
    "document",
    "interval",
    "key_padding",
    "prefix",
    "sliding_window",
    "soft_cap",
]


def causal(bottom_right: bool = False, *, offset: int = 0) -> Mask:
    """Query i sees the keys j <= i + offset: two numbers, whatever the sizes.

    Args:
        bottom_right: the last query is at the last key (i counts from S - L on): a chunk behind a
            key-value cache. Without it query 0 is at key 0, as ``is_causal=True`` has it.
        offset: a further shift, such as the position of query 0 in a static cache.
    """
    return sliding_window(None, 0, bottom_right, offset=offset)


def sliding_window(
    left: int | None, right: int | None = 0, bottom_right: bool = False, *, offset: int = 0
) -> Mask:
    """Query i sees the keys i + offset - left <= j <= i + offset + right; None is no limit.

    It sees itself, ``left`` keys before it and ``right`` behind it, as in flash attention's
    ``window_size=(left, right)``. Mistral's window of W tokens is ``sliding_window(W - 1)``.
    ``bottom_right`` and ``offset`` are those of :func:`causal`.
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None and size < 0:
            raise ValueError(
                f"sliding_window expects {name} to be None (no limit) or at least 0, got {size}"
            )
    return Mask(partial(_band, left, right, bottom_right, offset))


def _band(
    left: int | None, right: int | None, bottom_right: bool, offset: int, sizes: Sizes
) -> Pairs:
    center = sizes.diagonal(bottom_right) + offset
    return Pairs(None if left is None else center - left, None if right is None else center + right)


def interval(begin: int | Tensor, end: int | Tensor) -> Mask:
    """Query i sees the keys begin <= j < end, as far as there are such.

    Args:
        begin, end: ints, or integer tensors broadcastable to (batch, heads, queries).
    """
    for name, bound in (("begin", begin), ("end", end)):
        if isinstance(bound, Tensor):
            values.check_integers(bound, f"interval expects {name}", range(4))
    return Mask(partial(_interval, begin, end))


def _interval(begin: int | Tensor, end: int | Tensor, sizes: Sizes) -> Pairs:
    placed = [
        as_4d(bound[..., None], sizes, "interval")[..., 0] if isinstance(bound, Tensor) else bound
        for bound in (begin, end)
    ]
    return interval_pairs(placed[0], placed[1], sizes)


def key_padding(keys: Tensor | Sequence[int], *, left: bool = False) -> Mask:
    """The real keys of each sequence of a padded batch: one interval a sequence.

    Args:
        keys: how many there are, integers (B); or a boolean tensor (B, S), True where a key is real
            (``key_padding_mask`` of torch's MultiheadAttention is the opposite). Boolean rows that
            are one interval each become that, others stay a tensor of (B, 1, 1, S): looking at them
            waits for a GPU once, here.
        left: the padding is in front (for lengths).
    """
    if isinstance(keys, Tensor) and keys.dtype == torch.bool:
        if keys.dim() != 2 or left:
            raise ValueError(
                "key_padding expects lengths of shape (B), or without left=True booleans of shape "
                f"(B, S), got booleans of shape {tuple(keys.shape)} and left={left}"
            )
        spans = values.spans(keys)
        return dense(keys[:, None, None]) if spans is None else Mask(partial(_spans, keys, *spans))
    lengths, longest = values.as_lengths(keys, "key_padding")
    return Mask(partial(_lengths, lengths, longest, left, "key_padding"))


def _spans(real: Tensor, begin: Tensor, end: Tensor, sizes: Sizes) -> Pairs:
    values.check_rows(real, sizes.keys, sizes, "key_padding expects booleans")
    bounds = (bound.to(sizes.device).view(-1, 1, 1) for bound in (begin, end))
    return interval_pairs(next(bounds), next(bounds), sizes)


def _lengths(lengths: Tensor, longest: int | None, left: bool, name: str, sizes: Sizes) -> Pairs:
    values.check_lengths(lengths, longest, sizes, name)
    own = lengths.to(sizes.device).view(-1, 1, 1)
    begin, end = (sizes.keys - own, sizes.keys) if left else (0, own)
    return interval_pairs(begin, end, sizes)


def prefix(lengths: int | Tensor | Sequence[int]) -> Mask:
    """The first keys, for every query: an int, or integers (B). ``causal() | prefix(n)`` is that of
    a prefix language model, ``sliding_window(left) | prefix(n)`` has attention sinks."""
    many = [lengths] if isinstance(lengths, int) else lengths
    tensor, longest = values.as_lengths(many, "prefix")
    return Mask(partial(_lengths, tensor, longest, False, "prefix"))


def document(
    ids: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    key_ids: Tensor | None = None,
    key_cu_seqlens: Tensor | None = None,
) -> Mask:
    """Packed sequences: a query sees the keys of its own document.

    Args:
        ids: the document of each position, integers (L) or (B, L). Where each document is one
            contiguous run, each query has one interval. Others cost a boolean tensor of L x S.
            Looking at them waits for a GPU once, here.
        cu_seqlens: instead of ids, where documents begin, and the length: integers (N + 1), rising
            from 0 to L, the same for the whole batch. Not looked at on a GPU.
        key_ids, key_cu_seqlens: those of the keys, where they differ from the queries'. Such ids
            have to be sorted, or become a boolean tensor.
    """
    if (ids is None) == (cu_seqlens is None):
        raise ValueError("document expects either ids or cu_seqlens")
    if cu_seqlens is not None:
        if key_ids is not None:
            raise ValueError("document expects key_cu_seqlens with cu_seqlens, got key_ids")
        return _document_cu_seqlens(cu_seqlens, key_cu_seqlens)
    if key_cu_seqlens is not None:
        raise ValueError("document expects key_ids with ids, got key_cu_seqlens")
    assert ids is not None
    return _document_ids(ids, key_ids)


def _document_cu_seqlens(cu_seqlens: Tensor, key_cu_seqlens: Tensor | None) -> Mask:
    values.check_cu_seqlens(cu_seqlens, "document expects cu_seqlens")
    if key_cu_seqlens is None:
        key_cu_seqlens = cu_seqlens
    values.check_cu_seqlens(key_cu_seqlens, "document expects key_cu_seqlens")
    if len(key_cu_seqlens) != len(cu_seqlens):
        raise ValueError(
            f"document expects cu_seqlens and key_cu_seqlens of one length, got {len(cu_seqlens)} "
            f"and {len(key_cu_seqlens)}"
        )
    return Mask(partial(_packed, cu_seqlens, key_cu_seqlens))


def _packed(cu_seqlens: Tensor, key_cu_seqlens: Tensor, sizes: Sizes) -> Pairs:
    values.check_total(cu_seqlens, sizes.queries, "document expects cu_seqlens", "queries")
    values.check_total(key_cu_seqlens, sizes.keys, "document expects key_cu_seqlens", "keys")
    own = values.documents(cu_seqlens.to(sizes.device), sizes.queries).view(1, 1, -1)
    of_keys = key_cu_seqlens.to(sizes.device)
    return interval_pairs(of_keys[own], of_keys[own + 1], sizes)


def _document_ids(ids: Tensor, key_ids: Tensor | None) -> Mask:
    for name, tensor in (("ids", ids), ("key_ids", key_ids)):
        if tensor is not None:
            values.check_integers(tensor, f"document expects {name} of shape (L) or (B, L)", (1, 2))
    own = ids[None] if ids.dim() == 1 else ids
    if key_ids is None:
        of_keys, intervals = own, values.are_contiguous(own)
        if intervals:
            own = of_keys = values.runs(own)
    else:
        of_keys = key_ids[None] if key_ids.dim() == 1 else key_ids
        intervals = all(map(values.are_sorted, (own, of_keys)))
    return Mask(partial(_same_id, own, of_keys, intervals))


def _same_id(ids: Tensor, key_ids: Tensor, intervals: bool, sizes: Sizes) -> Pairs:
    values.check_rows(ids, sizes.queries, sizes, "document expects ids of queries")
    values.check_rows(key_ids, sizes.keys, sizes, "document expects ids of keys")
    ids, key_ids = ids.to(sizes.device), key_ids.to(sizes.device)
    if not intervals:
        return Pairs(allowed=ids[:, None, :, None] == key_ids[:, None, None])
    begin, end = values.equal_spans(ids, key_ids)
    return interval_pairs(begin[:, None], end[:, None], sizes)


def alibi(slopes: int | Tensor | Sequence[float], *, bottom_right: bool = False) -> Mask:
    r"""Adds :math:`-m_h |i - j|` to the scores of head h.

    Args:
        slopes: m, floats (H) or (B, H), without a gradient; or the number of heads, for the slopes
            of Press et al., "Train Short, Test Long", 2022: :math:`2^{-8h/H}`, h from 1 to H, if H
            is a power of two, else those of the power below and every second of the one above.
        bottom_right: the last query is at the last key.
    """
    m = values.alibi_slopes(slopes) if isinstance(slopes, int) else torch.as_tensor(slopes)
    if not m.is_floating_point() or m.dim() not in (1, 2):
        raise ValueError(
            "alibi expects a number of heads, or slopes as floats of shape (H) or (B, H), got "
            f"{m.dtype} of shape {tuple(m.shape)}"
        )
    if m.requires_grad:
        raise ValueError("alibi expects slopes without a gradient: give learned ones by bias()")
    return Mask(alibi=(Alibi(m.float().view(-1, m.shape[-1]), bottom_right),))


def soft_cap(cap: float) -> Mask:
    r"""Makes every score s :math:`c \tanh(s / c)`, before a bias is added, as Gemma 2 does."""
    if not 0 < cap < float("inf"):
        raise ValueError(f"soft_cap expects a finite number above 0, got {cap}")
    return Mask(soft_cap=float(cap))


def dense(allowed: Tensor) -> Mask:
    """A boolean tensor broadcastable to (B, H, L, S), True where a pair counts. ``dense(x) | y``
    becomes a tensor of the full size; ``&`` keeps both as they are."""
    if allowed.dtype != torch.bool or allowed.dim() > 4:
        raise ValueError(
            "dense expects a boolean tensor of at most 4 dimensions, got "
            f"{allowed.dtype} of shape {tuple(allowed.shape)}"
        )
    return Mask(partial(_allowed, allowed))


def _allowed(allowed: Tensor, sizes: Sizes) -> Pairs:
    return Pairs(allowed=as_4d(allowed, sizes, "dense"))


def bias(values: Tensor) -> Mask:
    """Floats broadcastable to (B, H, L, S), added to the scores; gradients flow to them."""
    if not values.is_floating_point() or values.dim() > 4:
        raise ValueError(
            "bias expects a floating point tensor of at most 4 dimensions, got "
            f"{values.dtype} of shape {tuple(values.shape)}"
        )
    return Mask(biases=(values,))
