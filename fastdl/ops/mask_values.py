"""Checks and conversions of what masks are made of, before any kernel runs.

Values are looked at on the CPU alone, unless a function says otherwise: a GPU would be waited for.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.compiler import is_compiling

from fastdl.ops.mask_regions import Sizes


def check_integers(tensor: Tensor, expects: str, dims: Container[int]) -> None:
    """A ValueError that begins with `expects`, for other dtypes and numbers of dimensions."""
    wrong = tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex()
    if wrong or tensor.dim() not in dims:
        raise ValueError(
            f"{expects} as integers of {' or '.join(str(dim) for dim in range(4) if dim in dims)} "
            f"dimensions, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether it has values that Python may look at: not while traced, mapped or faked."""
    return (
        type(tensor) is Tensor
        and not is_compiling()
        and tensor.device.type != "meta"
        and _len_torch_dispatch_stack() == 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def can_look(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a GPU."""
    return tensor.device.type == "cpu" and is_plain(tensor)


def as_lengths(lengths: Tensor | Sequence[int], name: str) -> tuple[Tensor, int | None]:
    """Lengths (B), and the longest if its value can be known."""
    lengths = torch.as_tensor(lengths)
    check_integers(lengths, f"{name} expects lengths of shape (B)", (1,))
    if not can_look(lengths) or lengths.numel() == 0:
        return lengths, None
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 0:
        raise ValueError(f"{name} expects lengths of at least 0, got {shortest}")
    return lengths, longest


def check_lengths(lengths: Tensor, longest: int | None, sizes: Sizes, name: str) -> None:
    """They are one or one a sequence, and not beyond the keys."""
    if len(lengths) not in (1, sizes.batch):
        raise ValueError(f"{name} expects lengths of shape ({sizes.batch},), got ({len(lengths)},)")
    if longest is not None and longest > sizes.keys:
        raise ValueError(f"{name} expects lengths of at most {sizes.keys} keys, got {longest}")


def check_rows(tensor: Tensor, length: int, sizes: Sizes, expects: str) -> None:
    """Its shape is (batch or 1, length)."""
    if tuple(tensor.shape) not in ((1, length), (sizes.batch, length)):
        raise ValueError(f"{expects} of shape ({sizes.batch}, {length}), got {tuple(tensor.shape)}")


def spans(real: Tensor) -> tuple[Tensor, Tensor] | None:
    """The begin and end (B) of what is True in each row; None if one is not one interval.

    Waits for a GPU. None also where no values can be looked at.
    """
    if not is_plain(real):
        return None
    steps = torch.nn.functional.pad(real.to(torch.int8), (1, 1)).diff(dim=1)
    if real.numel() > 0 and int((steps > 0).sum(1).max()) > 1:
        return None
    return (steps > 0).int().argmax(1), (steps < 0).int().argmax(1)


def runs(ids: Tensor) -> Tensor:
    """The number of the run of equal ids that each one is in, ids of shape (B or 1, L)."""
    changes = ids[:, 1:] != ids[:, :-1]
    return torch.nn.functional.pad(changes.cumsum(1), (1, 0))


def are_sorted(ids: Tensor) -> bool:
    """Whether no row is known to fall; waits for a GPU."""
    return is_plain(ids) and bool((ids[:, 1:] >= ids[:, :-1]).all())


def are_contiguous(ids: Tensor) -> bool:
    """Whether each id is known to be one run of its row; waits for a GPU."""
    if not is_plain(ids) or are_sorted(ids):
        return is_plain(ids)
    order = ids.sort(1).values
    return torch.equal(runs(ids)[:, -1], runs(order)[:, -1])


def equal_spans(ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where the keys of each query's id begin and end: (B or 1, L), of sorted ids."""
    batch = max(len(ids), len(key_ids))
    ids = ids.expand(batch, -1).contiguous()
    key_ids = key_ids.expand(batch, -1).contiguous()
    return torch.searchsorted(key_ids, ids), torch.searchsorted(key_ids, ids, right=True)


def check_cu_seqlens(cu_seqlens: Tensor, expects: str) -> None:
    """Integers (N + 1) from 0 on, rising; `expects` is how the error begins."""
    check_integers(cu_seqlens, f"{expects} of shape (N + 1)", (1,))
    if len(cu_seqlens) == 0:
        raise ValueError(f"{expects} of shape (N + 1), got an empty tensor")
    if not can_look(cu_seqlens):
        return
    if cu_seqlens[0] != 0:
        raise ValueError(f"{expects} to begin with 0, got {cu_seqlens[0].item()}")
    if not bool((cu_seqlens.diff() >= 0).all()):
        raise ValueError(f"{expects} to rise, got {_shown(cu_seqlens)}")


def check_total(cu_seqlens: Tensor, length: int, expects: str, of: str) -> None:
    """The last number is the length."""
    if can_look(cu_seqlens) and cu_seqlens[-1] != length:
        raise ValueError(
            f"{expects} to end with the number of {of}, {length}, got {cu_seqlens[-1].item()}"
        )


def documents(cu_seqlens: Tensor, queries: int) -> Tensor:
    """The document of each query (L)."""
    positions = torch.arange(queries, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    last = max(len(cu_seqlens) - 2, 0)
    return (torch.searchsorted(cu_seqlens, positions, right=True) - 1).clamp(0, last)


def alibi_slopes(heads: int) -> Tensor:
    """Those of Press et al. for a number of heads."""
    if heads < 1:
        raise ValueError(f"alibi expects at least 1 head, got {heads}")
    power = 1 << (heads.bit_length() - 1)
    exponents = [-8 * (h + 1) / power for h in range(power)]
    exponents += [-4 * (h + 1) / power for h in range(0, 2 * (heads - power), 2)]
    return torch.tensor([2.0**exponent for exponent in exponents])


def _shown(tensor: Tensor) -> str:
    values = tensor[:8].tolist()
    return f"[{', '.join(map(str, values))}{', ...' if len(tensor) > 8 else ''}]"
