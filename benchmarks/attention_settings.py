"""What is attended to in the cases of attention: sizes, and masks as torch and as fastdl take them.

`share` is how much of the queries x keys counts: rates count the operations of these pairs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import masks

Arguments = Callable[[torch.device, torch.dtype], dict[str, Any]]
TensorFunction = Callable[..., Tensor]
TILE = 64
# Words of 16 paragraphs, and of articles behind each other, of Python's documentation
PARAGRAPHS = (98, 85, 83, 69, 61, 49, 42, 42, 41, 38, 28, 21, 20, 19, 18, 17)
ARTICLES = (577, 529, 320, 198, 193, 103, 63, 65)


@dataclass(frozen=True)
class Size:
    """Of query, key and value."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int = 64
    kv_heads: int = 0  # as many as heads, if 0
    value_dim: int = 0  # as large as head_dim, if 0

    def shapes(self) -> list[tuple[int, ...]]:
        """Of query, key, value and output."""
        kv_heads = self.kv_heads or self.heads
        value_dim = self.value_dim or self.head_dim
        return [
            (self.batch, self.heads, self.queries, self.head_dim),
            (self.batch, kv_heads, self.keys, self.head_dim),
            (self.batch, kv_heads, self.keys, value_dim),
            (self.batch, self.heads, self.queries, value_dim),
        ]

    def flops(self, direction: str) -> int:
        """Two products forward; five backward, as scores are computed again; training is both."""
        head_dim, value_dim = self.head_dim, self.value_dim or self.head_dim
        a_pair = (direction != "backward") * (head_dim + value_dim)
        a_pair += (direction != "forward") * (3 * head_dim + 2 * value_dim)
        return 2 * self.batch * self.heads * self.queries * self.keys * a_pair

    def __str__(self) -> str:
        text = f"{self.batch}x{self.heads}x{self.queries}x{self.head_dim}"
        text += f" to {self.keys} keys" * (self.keys != self.queries)
        text += f" of {self.kv_heads} heads" * bool(self.kv_heads)
        return text + f", values of {self.value_dim}" * bool(self.value_dim)


def nothing(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """No arguments besides query, key and value."""
    return {}


@dataclass(frozen=True)
class Setting:
    """A call of attention besides its dtype."""

    group: str
    size: Size
    label: str = ""
    share: float = 1.0
    fast: Arguments = nothing
    native: Arguments = nothing
    bias: tuple[int, ...] = ()  # its shape, where it is an input
    learned: bool = False  # the bias gets a gradient
    mask_bytes: int = 0
    others: Mapping[str, TensorFunction] = field(default_factory=dict)  # best native settings
    quick: bool = True
    exact: bool = True  # gives the same every time, so that errors can be measured
    rows_first: bool = False  # tensors are (batch, rows, heads, cols) in memory
    every_pair: bool = False  # time fastdl on all pairs too


def with_mask(make: Callable[[torch.device], Any]) -> Arguments:
    """A mask of any dtype of tensors."""
    return lambda device, dtype: {"attn_mask": make(device)}


def full(size: Size, group: str = "full", **other: Any) -> Setting:
    """Every pair."""
    return Setting(group, size, **other)


def causal(size: Size, group: str = "causal", **other: Any) -> Setting:
    """is_causal on both sides."""
    return Setting(
        group, size, "causal", causal_share(size), native=is_causal, fast=is_causal, **other
    )


def is_causal(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What both take."""
    return {"is_causal": True}


def causal_share(size: Size, window: int | None = None) -> float:
    """The share of pairs below the diagonal, and at most so far from it."""
    pairs = sum(min(i, size.keys - 1, window or i) + 1 for i in range(size.queries))
    return pairs / (size.queries * size.keys)


def added_mask(make: Callable[[torch.device], Tensor]) -> TensorFunction:
    """Native attention with the boolean mask as one that is added, made ahead."""
    made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        place = (query.device, query.dtype)
        if place not in made:
            zeros = torch.zeros((), device=query.device, dtype=query.dtype)
            made[place] = zeros.masked_fill(~make(query.device), -torch.inf)
        return F.scaled_dot_product_attention(query, key, value, made[place])

    return call


def boolean(
    size: Size, label: str, share: float, make: Callable[[torch.device], Tensor],
    group: str = "boolean mask", **other: Any,
) -> Setting:  # fmt: skip
    """The same boolean tensor on both sides."""
    others = {"mask that is added": added_mask(make), **other.pop("others", {})}
    return Setting(
        group, size, label, share, with_mask(make), with_mask(make),
        mask_bytes=size.queries * size.keys, others=others, **other,
    )  # fmt: skip


def lower_triangle(size: Size, device: torch.device) -> Tensor:
    """The causal mask as a tensor."""
    return torch.ones(size.queries, size.keys, dtype=torch.bool, device=device).tril()


def random_pairs(
    size: Size, share: float, leading: tuple[int, ...], device: torch.device
) -> Tensor:
    """Pairs that count at random."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (*leading, size.queries, size.keys)
    return torch.rand(shape, generator=generator, device=device) < share


def random_tiles(size: Size, share: float, device: torch.device) -> Tensor:
    """Whole tiles at random, those of the diagonal among them."""
    rows, cols = size.queries // TILE, size.keys // TILE
    order = torch.rand(rows, cols, generator=torch.Generator().manual_seed(1))
    order.diagonal().fill_(-1)
    chosen = order.flatten().argsort()[: round(share * rows * cols)]
    tiles = torch.zeros(rows * cols, dtype=torch.bool)
    tiles[chosen] = True
    tiles = tiles.view(rows, cols).to(device)
    return tiles.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)


def fast_and_dense(
    group: str, size: Size, label: str, share: float, mask: masks.Mask, **other: Any
) -> Setting:
    """A mask of fastdl against the boolean tensor that it stands for."""

    def dense(device: torch.device) -> Tensor:
        parts = mask.parts(size.batch, size.heads, size.queries, size.keys, device)
        allowed, _ = parts.dense(size.queries, size.keys, device)
        assert allowed is not None
        return allowed

    return Setting(
        group, size, label, share, with_mask(lambda device: mask), with_mask(dense), **other
    )


def by_text(lengths: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Native attention without a mask, one text of the padded batch after the other."""
    attended = [
        F.scaled_dot_product_attention(query[i, None], key[i, None, :, :n], value[i, None, :, :n])
        for i, n in enumerate(lengths)
    ]
    return torch.cat(attended)


def padded(size: Size, lengths: Sequence[int], label: str, **other: Any) -> Setting:
    """Padding of keys."""
    share = sum(lengths) / (size.batch * size.keys)
    others = {"text by text": partial(by_text, lengths)}
    mask = masks.key_padding(lengths)
    return fast_and_dense("padding", size, label, share, mask, others=others, **other)


def by_document(lengths: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Native causal attention, one document of the packed row after the other."""
    documents = [torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value)]
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
        for q, k, v in zip(*documents, strict=True)
    ]
    return torch.cat(attended, dim=2)


def documents(size: Size, lengths: Sequence[int], **other: Any) -> Setting:
    """A row of packed documents, causal."""
    share = sum(n * (n + 1) / 2 for n in lengths) / (size.queries * size.keys)
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return fast_and_dense(
        "documents", size, f"{len(lengths)} documents", share,
        masks.document(ids) & masks.causal(), others={"by document": partial(by_document, lengths)},
        **other,
    )  # fmt: skip


def slanted(size: Size, **other: Any) -> Setting:
    """ALiBi, causal: a bias in memory natively."""
    mask = masks.alibi(size.heads) & masks.causal()

    def native(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        parts = mask.parts(size.batch, size.heads, size.queries, size.keys, device)
        allowed, bias = parts.dense(size.queries, size.keys, device)
        assert allowed is not None and bias is not None
        return {"attn_mask": bias.masked_fill(~allowed, -torch.inf).to(dtype)}

    return Setting(
        "added bias", size, "ALiBi, causal", causal_share(size), with_mask(lambda device: mask),
        native, **other,
    )  # fmt: skip


def dropped(setting: Setting, quick: bool = True) -> Setting:
    """The same with dropout."""

    def with_dropout(arguments: Arguments) -> Arguments:
        return lambda device, dtype: {**arguments(device, dtype), "dropout_p": 0.1}

    return Setting(
        "dropout", setting.size, f"{setting.label} dropout 0.1".strip(), setting.share,
        with_dropout(setting.fast), with_dropout(setting.native), exact=False,
        quick=quick,
    )  # fmt: skip
