"""Mask, which composes, and MaskParts, what it is for one call."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastdl.ops import mask_regions as regions
from fastdl.ops.mask_regions import Pairs, Region, Sizes, as_4d

_MOST_KEPT = 8  # sizes whose parts a mask keeps, so that every layer of a model finds them


@dataclass(frozen=True)
class MaskParts:
    """A mask for one call: query i and key j count if all that is set lets them.

    The score is capped (``soft_cap * tanh(score / soft_cap)``), then ``bias`` and
    ``-slope * |i + slope_offset - j|`` are added.
    """

    lowest: int | None = None  # lowest <= j - i <= highest
    highest: int | None = None
    begin: Tensor | None = None  # begin <= j < end in any interval: int32, values in [0, keys]
    end: Tensor | None = None  # [intervals, batch or 1, heads or 1, queries or 1]
    allowed: Tensor | None = None  # bool, 4-D, broadcastable to [batch, heads, queries, keys]
    bias: Tensor | None = None  # float, likewise
    slopes: Tensor | None = None  # float32 [batch or 1, heads]
    slope_offset: int = 0
    soft_cap: float = 0.0

    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        every = (self.begin, self.end, self.allowed, self.bias, self.slopes)
        return [tensor for tensor in every if tensor is not None]

    def dense(
        self, queries: int, keys: int, device: torch.device | str | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The pairs that count as a boolean tensor, and all that is added to scores as a float one.

        Both are 4-D and broadcastable to [batch, heads, queries, keys]; None where there is none.
        """
        if device is None:
            device = next((t.device for t in self.tensors()), torch.device("cpu"))
        rows = torch.arange(queries, device=device).view(1, 1, -1, 1)
        cols = torch.arange(keys, device=device)
        spans = None if self.begin is None or self.end is None else (self.begin, self.end)
        pairs = regions.dense(self.lowest, self.highest, spans, self.allowed, rows, cols)
        bias = self.bias
        if self.slopes is not None:
            distances = (rows + self.slope_offset - cols).abs()
            slanted = -self.slopes[:, :, None, None] * distances
            bias = slanted if bias is None else bias + slanted
        return pairs, bias


@dataclass(frozen=True)
class Alibi:
    """Slopes, and where the queries are."""

    slopes: Tensor  # [batch or 1, heads]
    bottom_right: bool


class Mask:
    """Pairs of queries and keys that count, and what is added to their scores.

    ``a & b`` lets the pairs count that both let, and adds what both add; ``a | b`` those that
    either lets, ``~a`` those that a does not, both for masks that add nothing to scores.
    """

    ndim = 4  # of (batch, heads, queries, keys): libraries tell masks of all pairs by it

    def __init__(
        self,
        *all_of: Region,
        biases: tuple[Tensor, ...] = (),
        alibi: tuple[Alibi, ...] = (),
        soft_cap: float = 0.0,
    ) -> None:
        self._regions = all_of
        self._biases = biases
        self._alibi = alibi
        self._soft_cap = soft_cap
        self._kept: OrderedDict[tuple[object, ...], MaskParts] = OrderedDict()

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        if self._soft_cap and other._soft_cap:
            raise ValueError("a & b expects at most one soft_cap, got one in either mask")
        if self._alibi and other._alibi:
            raise ValueError("a & b expects at most one alibi, got one in either mask")
        return Mask(
            *self._regions,
            *other._regions,
            biases=self._biases + other._biases,
            alibi=self._alibi + other._alibi,
            soft_cap=self._soft_cap or other._soft_cap,
        )

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        a, b = self._pairs_only("|"), other._pairs_only("|")
        return Mask(partial(_either, a, b))

    def __invert__(self) -> Mask:
        pairs = self._pairs_only("~")
        return Mask(partial(_complement, pairs))

    def _pairs_only(self, operator: str) -> Region:
        if self._biases or self._alibi or self._soft_cap:
            raise ValueError(
                f"{operator} expects masks that choose pairs, got one with a bias, alibi or "
                "soft_cap: add that with & afterwards"
            )
        return self._pairs

    def _pairs(self, sizes: Sizes) -> Pairs:
        result = Pairs()
        for region in self._regions:
            result = regions.both(result, region(sizes), sizes)
        return result

    def parts(
        self, batch: int, heads: int, queries: int, keys: int, device: torch.device | str
    ) -> MaskParts:
        """The mask for tensors of these sizes, kept for the next call with the same ones.

        Raises ValueError if what the mask was made of does not fit the sizes.
        """
        sizes = (batch, heads, queries, keys, device)  # quicker to look up than Sizes
        if is_compiling():
            return self._parts(Sizes(*sizes[:4], torch.device(device)))
        if (kept := self._kept.get(sizes)) is not None:
            return kept
        with torch.inference_mode(False):  # a later call may want gradients
            parts = self._parts(Sizes(*sizes[:4], torch.device(device)))
        # Views of a bias belong to one graph, fake tensors to one mode.
        if not self._biases and all(type(t) is Tensor for t in parts.tensors()):
            self._kept[sizes] = parts
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return parts

    def _parts(self, sizes: Sizes) -> MaskParts:
        pairs = self._pairs(sizes)
        begin, end = (None, None)
        if pairs.pieces is not None:
            begin, end = regions.stacked(pairs.pieces, sizes)
        biases = [as_4d(bias, sizes, "bias") for bias in self._biases]
        slopes, slope_offset = None, 0
        for alibi in self._alibi:
            slopes = alibi.slopes.to(sizes.device)
            if slopes.shape not in ((1, sizes.heads), (sizes.batch, sizes.heads)):
                raise ValueError(
                    f"alibi expects slopes of {sizes.heads} heads, or of ({sizes.batch}, "
                    f"{sizes.heads}), got {tuple(slopes.shape)}"
                )
            slope_offset = sizes.diagonal(alibi.bottom_right)
        return MaskParts(
            pairs.lowest,
            pairs.highest,
            begin,
            end,
            pairs.allowed,
            reduce(torch.add, biases) if biases else None,
            slopes,
            slope_offset,
            self._soft_cap,
        )


def _either(a: Region, b: Region, sizes: Sizes) -> Pairs:
    return regions.either(a(sizes), b(sizes), sizes)


def _complement(pairs: Region, sizes: Sizes) -> Pairs:
    return regions.complement(pairs(sizes), sizes)
