"""What masks are made of: sets of pairs (query i, key j), kept as two numbers or as intervals.

A region, resolved for the sizes of one call, is a conjunction (`Pairs`): a band of j - i, a union
of intervals of keys a query (pieces), and a boolean tensor. A bound of an interval is an int where
it is the same for all: intervals with a common end can then be joined without looking at values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

Bound = int | Tensor  # a tensor is broadcastable to [batch, heads, queries]
Piece = tuple[Bound, Bound]

# More of them cost a kernel more than the tests of a boolean tensor, whose tiles are classified.
MOST_PIECES = 8


@dataclass(frozen=True)
class Sizes:
    """Of the call that a mask is resolved for."""

    batch: int
    heads: int
    queries: int
    keys: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.queries, self.keys

    def diagonal(self, bottom_right: bool) -> int:
        """j - i of a query and the key at its own position."""
        return self.keys - self.queries if bottom_right else 0

    def positions(self) -> Tensor:
        """The index of each query: [1, 1, queries]."""
        return torch.arange(self.queries, device=self.device).view(1, 1, -1)


def as_4d(tensor: Tensor, sizes: Sizes, name: str) -> Tensor:
    """The tensor with ones in front, on the device of the call; an error if it does not fit."""
    shape = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    if len(shape) > 4 or any(
        size not in (1, full) for size, full in zip(shape, sizes.shape, strict=True)
    ):
        raise ValueError(
            f"{name} expects a tensor broadcastable to (batch, heads, queries, keys) = "
            f"{sizes.shape}, got {tuple(tensor.shape)}"
        )
    return tensor.to(sizes.device).view(shape)


@dataclass(frozen=True)
class Pairs:
    """The pairs with lowest <= j - i <= highest that lie in one of `pieces` and are `allowed`."""

    lowest: int | None = None
    highest: int | None = None
    pieces: tuple[Piece, ...] | None = None
    allowed: Tensor | None = None


Region = Callable[[Sizes], Pairs]


def _larger(a: Bound, b: Bound) -> Bound:
    if isinstance(a, int):
        return max(a, b) if isinstance(b, int) else b.clamp(min=a) if a > 0 else b
    return torch.maximum(a, b) if isinstance(b, Tensor) else _larger(b, a)


def _smaller(a: Bound, b: Bound, keys: int) -> Bound:
    if isinstance(a, int):
        return min(a, b) if isinstance(b, int) else b.clamp(max=a) if a < keys else b
    return torch.minimum(a, b) if isinstance(b, Tensor) else _smaller(b, a, keys)


def _within(bound: Bound, keys: int) -> Bound:
    return min(max(bound, 0), keys) if isinstance(bound, int) else bound.clamp(0, keys)


def _without_empty(pieces: list[Piece]) -> tuple[Piece, ...]:
    """At least one piece: none would mean that nothing is left out."""
    kept = [
        (begin, end)
        for begin, end in pieces
        if isinstance(begin, Tensor) or isinstance(end, Tensor) or begin < end
    ]
    return tuple(kept) or ((0, 0),)


def interval_pairs(begin: Bound, end: Bound, sizes: Sizes) -> Pairs:
    """The keys begin <= j < end."""
    begin, end = _within(begin, sizes.keys), _within(end, sizes.keys)
    if _is(begin, 0) and _is(end, sizes.keys):
        return Pairs()
    return Pairs(pieces=_without_empty([(begin, end)]))


def both(a: Pairs, b: Pairs, sizes: Sizes) -> Pairs:
    """The pairs that are in a and in b."""
    lowest = [p.lowest for p in (a, b) if p.lowest is not None]
    highest = [p.highest for p in (a, b) if p.highest is not None]
    allowed = [p.allowed for p in (a, b) if p.allowed is not None]
    pieces = _common_pieces(a.pieces, b.pieces, sizes.keys)
    if pieces is not None and len(pieces) > MOST_PIECES:
        allowed.append(_dense(Pairs(pieces=pieces), sizes))
        pieces = None
    return Pairs(
        max(lowest) if lowest else None,
        min(highest) if highest else None,
        pieces,
        reduce(torch.logical_and, allowed) if allowed else None,
    )


def _common_pieces(
    a: tuple[Piece, ...] | None, b: tuple[Piece, ...] | None, keys: int
) -> tuple[Piece, ...] | None:
    if a is None or b is None:
        return a or b
    return _without_empty([(_larger(p[0], q[0]), _smaller(p[1], q[1], keys)) for p in a for q in b])


def _as_pieces(pairs: Pairs, sizes: Sizes) -> tuple[Piece, ...]:
    """The band and the pieces of it as pieces; the boolean tensor, if any, is left out."""
    everything: Piece = (0, sizes.keys)
    if pairs.lowest is None and pairs.highest is None:
        return pairs.pieces or (everything,)
    positions = sizes.positions()
    begin: Bound = 0 if pairs.lowest is None else positions + pairs.lowest
    end: Bound = sizes.keys if pairs.highest is None else positions + (pairs.highest + 1)
    band = interval_pairs(begin, end, sizes).pieces
    return _common_pieces(band, pairs.pieces, sizes.keys) or (everything,)


def _is_everything(pairs: Pairs) -> bool:
    return all(part is None for part in (pairs.lowest, pairs.highest, pairs.pieces, pairs.allowed))


def either(a: Pairs, b: Pairs, sizes: Sizes) -> Pairs:
    """The pairs that are in a or in b."""
    if _is_everything(a) or _is_everything(b):
        return Pairs()
    if (band := _joined_bands(a, b)) is not None:
        return band
    if a.allowed is None and b.allowed is None:
        pieces: list[Piece] = []
        for piece in (*_as_pieces(a, sizes), *_as_pieces(b, sizes)):
            _add_piece(pieces, piece, sizes.keys)
        if len(pieces) <= MOST_PIECES:
            return Pairs(pieces=_without_empty(pieces))
    return Pairs(allowed=_dense(a, sizes) | _dense(b, sizes))


def _joined_bands(a: Pairs, b: Pairs) -> Pairs | None:
    """The union of two bands without a gap between them."""
    if any(p.pieces is not None or p.allowed is not None for p in (a, b)):
        return None
    for p, q in ((a, b), (b, a)):
        if p.highest is not None and q.lowest is not None and p.highest + 1 < q.lowest:
            return None
    lows, highs = (a.lowest, b.lowest), (a.highest, b.highest)
    return Pairs(
        None if None in lows else min(low for low in lows if low is not None),
        None if None in highs else max(high for high in highs if high is not None),
    )


def _add_piece(pieces: list[Piece], piece: Piece, keys: int) -> None:
    """Joins it to one that begins or ends at the same number, which cannot leave a gap."""
    begin, end = piece
    for number, (other_begin, other_end) in enumerate(pieces):
        if _is(begin, 0) and _is(other_begin, 0):
            pieces[number] = (0, _larger(end, other_end))
            return
        if _is(end, keys) and _is(other_end, keys):
            pieces[number] = (_smaller(begin, other_begin, keys), keys)
            return
    pieces.append(piece)


def _is(bound: Bound, value: int) -> bool:
    return isinstance(bound, int) and bound == value


def complement(pairs: Pairs, sizes: Sizes) -> Pairs:
    """The pairs that are not in it: those outside any of its parts."""
    outside = []
    if pairs.lowest is not None:
        outside.append(Pairs(highest=pairs.lowest - 1))
    if pairs.highest is not None:
        outside.append(Pairs(lowest=pairs.highest + 1))
    if pairs.pieces is not None:
        gaps = Pairs()
        for begin, end in pairs.pieces:
            before, behind = interval_pairs(0, begin, sizes), interval_pairs(end, sizes.keys, sizes)
            gaps = both(gaps, either(before, behind, sizes), sizes)
        outside.append(gaps)
    if pairs.allowed is not None:
        outside.append(Pairs(allowed=~pairs.allowed))
    nothing = Pairs(pieces=((0, 0),))
    return reduce(lambda a, b: either(a, b, sizes), outside) if outside else nothing


def stacked(pieces: tuple[Piece, ...], sizes: Sizes) -> tuple[Tensor, Tensor]:
    """The begins and ends of all pieces, int32: [pieces, batch or 1, heads or 1, queries or 1]."""
    bounds = [
        torch.tensor(bound, dtype=torch.int32, device=sizes.device).view(1, 1, 1)
        if isinstance(bound, int)
        else bound.to(torch.int32)
        for piece in pieces
        for bound in piece
    ]
    shape = torch.broadcast_shapes(*(b.shape for b in bounds))  # type: ignore[no-untyped-call]
    bounds = [bound.expand(shape) for bound in bounds]
    return torch.stack(bounds[::2]), torch.stack(bounds[1::2])


def dense(
    lowest: int | None,
    highest: int | None,
    spans: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    rows: Tensor,
    cols: Tensor,
) -> Tensor | None:
    """The pairs that all of these let as a boolean tensor; None if there are none of these.

    Broadcastable to [batch, heads, queries, keys]; `rows` [1, 1, queries, 1] and `cols` [keys] are
    the indices, `spans` stacked begins and ends.
    """
    parts = [] if allowed is None else [allowed]
    if lowest is not None:
        parts.append(cols - rows >= lowest)
    if highest is not None:
        parts.append(cols - rows <= highest)
    if spans is not None:
        begin, end = (bound[..., None] for bound in spans)
        parts.append(((begin <= cols) & (cols < end)).any(0))
    return reduce(torch.logical_and, parts) if parts else None


def _dense(pairs: Pairs, sizes: Sizes) -> Tensor:
    spans = None if pairs.pieces is None else stacked(pairs.pieces, sizes)
    rows, cols = sizes.positions()[..., None], torch.arange(sizes.keys, device=sizes.device)
    tensor = dense(pairs.lowest, pairs.highest, spans, pairs.allowed, rows, cols)
    return cols.new_ones(1, 1, 1, 1, dtype=torch.bool) if tensor is None else tensor
