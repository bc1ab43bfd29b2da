"""Sizes, dtypes, memory layouts and special values that the tests of all ops go through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCED_DTYPES = (torch.bfloat16, torch.float16)

# 1 and primes, and one below and above each vector width and four of them.
VECTOR_WIDTHS = (4, 8, 16, 32, 64, 128)
SIZES = sorted({1, 2, 13, 97, 257, 1009} | {w + d for w in VECTOR_WIDTHS for d in (-1, 0, 1)})


def dtype_name(dtype: object) -> str:
    """For test ids: float32 instead of torch.float32."""
    return str(dtype).removeprefix("torch.")


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Tensor:
    """Normally distributed values in one of the LAYOUTS."""
    return LAYOUTS[layout](torch.randn(tuple(shape), dtype=torch.float64).to(dtype))


def generator_state() -> Tensor:
    """The state of the random numbers of the device that the tests are on."""
    on_gpu = torch.get_default_device().type == "cuda"
    return torch.cuda.get_rng_state() if on_gpu else torch.get_rng_state()


def spread_rows(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """64 rows, each of which has a variance of about 1.

    Normalising a row of a few nearly equal numbers magnifies every rounding error: it would decide
    alone which of two implementations comes out better, by chance. So would the rounding of the
    mean, which is one number a row, of a few rows.
    """
    values = torch.rand(64, size, dtype=torch.float64) - 0.5
    values[:, ::2] += 1
    values[:, 1::2] -= 1
    return values.to(dtype)


def sliced(tensor: Tensor) -> Tensor:
    """A window into a larger tensor, which has other values around it."""
    window = tensor.new_full([size + 2 for size in tensor.shape], 1e3)
    window = window[tuple(slice(1, 1 + size) for size in tensor.shape)]
    return window.copy_(tensor)


def stepped(tensor: Tensor) -> Tensor:
    """Every second element along the last dimension of a larger tensor."""
    larger = tensor.new_full([*tensor.shape[:-1], 2 * tensor.shape[-1]], 1e3)
    return larger[..., ::2].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """The first and last dimension swapped in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def unaligned(tensor: Tensor) -> Tensor:
    """Contiguous, but one element off every vector boundary."""
    larger = tensor.new_full([tensor.numel() + 2], 1e3)
    return larger[1:-1].view(tensor.shape).copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """The first entry along the first dimension repeated with stride 0."""
    return tensor[:1].expand(tensor.shape)


def channels_last(tensor: Tensor) -> Tensor:
    """The second dimension innermost in memory, for 4 and 5 dimensions; else contiguous."""
    if tensor.dim() not in (4, 5):
        return tensor
    format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.contiguous(memory_format=format)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "unaligned": unaligned,
    "sliced": sliced,
    "stepped": stepped,
    "transposed": transposed,
    "channels_last": channels_last,
    "expanded": expanded,
}


def special_rows(size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of 6 rows of `size` >= 4 elements that are not like random ones, by name.

    The rows of a tensor are multiples of each other: the error of one row is often one random
    number (that of its sum), and single numbers cannot be compared.
    """
    largest = torch.finfo(dtype).max
    tiny = torch.finfo(dtype).smallest_normal
    base = torch.linspace(-3, 3, size, dtype=torch.float64)
    middle, last = size // 2, size - 1

    def with_values(*pairs: tuple[int, float]) -> Tensor:
        row = base.clone()
        for index, value in pairs:
            row[index] = value
        return row

    def only(index: int, value: float) -> Tensor:
        row = torch.full_like(base, -math.inf)
        row[index] = value
        return row

    rows = {
        "one +inf": with_values((middle, math.inf)),
        "two +inf": with_values((0, math.inf), (last, math.inf)),
        "one -inf": with_values((last, -math.inf)),
        "both infinities": with_values((0, -math.inf), (last, math.inf)),
        "first NaN": with_values((0, math.nan)),
        "last NaN": with_values((last, math.nan)),
        "NaN and infinities": with_values((0, math.inf), (middle, math.nan), (last, -math.inf)),
        "all but one -inf": only(middle, 1.5),
        "all -inf": torch.full_like(base, -math.inf),
        "all +inf": torch.full_like(base, math.inf),
        "all NaN": torch.full_like(base, math.nan),
        "all equal": torch.full_like(base, -7.25),
        "zeros": torch.zeros_like(base),
        "negative zeros": -torch.zeros_like(base),
        "largest": with_values((middle, largest)),
        "lowest": with_values((middle, -largest)),
        "largest and lowest": with_values((0, largest), (last, -largest)),
        "tiny": base * tiny,
        "denormal": base * tiny / 16,
        "far apart": base * 40,
        "large with small spread": base / 8 + 200,
    }
    factors = 1 - torch.arange(6, dtype=torch.float64)[:, None] / 37
    return {name: (row * factors).to(dtype) for name, row in rows.items()}


def zero_sum(tensor: Tensor) -> Tensor:
    """Random gradients for it that add up to about 0 along its last dimension.

    The softmax family multiplies their sum by a rounded exponential, and where one element has
    nearly all the probability the rounding of that one number would decide the comparison.
    """
    grad = torch.randn_like(tensor, dtype=torch.float64)
    return (grad - grad.mean(-1, keepdim=True)).to(tensor.dtype)
