"""conv1d and conv2d: torch's functions and modules on fastdl."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from fastdl import _C
from fastdl.ops.activation import relu as fast_relu

Size = int | Sequence[int]
_DEFAULTS = (None, 1, 0, 1, 1)  # of bias, stride, padding, dilation, groups
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class allow_winograd:
    """Whether convolutions may use Winograd's algorithm, in the whole process; by default they may.

    ``allow_winograd(False)`` sets it, ``with allow_winograd(False):`` sets it for a block. With it,
    3x3 convolutions of stride 1 need less than half of the products. Their error is up to 10 times
    that of direct ones, at most 5e-6 of the largest output, and an infinity or NaN makes its whole
    tile of outputs NaN (up to 8 x 8 around it); without it, both are as torch's.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.before = _C.set_allow_winograd(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _C.set_allow_winograd(self.before)


def _each(size: Size, dims: int) -> list[int]:
    """One number a dimension."""
    numbers = [size] if isinstance(size, int) else list(size)
    return numbers * dims if len(numbers) == 1 else numbers


def _compiled(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor | None:
    """The registered op as a compiler sees it, or None where it should see torch's."""
    is_batch = input.dim() == dims + 2
    if is_exporting() or weight.dim() != dims + 2 or input.dtype not in KERNEL_DTYPES:
        return None
    if not is_batch and input.dim() != dims + 1:
        return None
    steps = _each(dilation, dims)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(steps, weight.shape[2:], strict=False)]
        around = [side for total in totals for side in (total // 2, total - total // 2)]
    else:
        in_front = [0] * dims if isinstance(padding, str) else _each(padding, dims)
        around = [side for side in in_front for _ in range(2)]
    strides = _each(stride, dims)
    if (padding == "same" and strides != [1] * dims) or min(around) < 0:
        return None
    if not is_batch:
        input, residual = input[None], None if residual is None else residual[None]
    output: Tensor = torch.ops.fastdl.convolution(
        input, weight, bias, residual, strides, around, steps, groups, relu, True
    )
    return output if is_batch else output[0]


def _native(dims: int, arguments: tuple[Any, ...]) -> Tensor:
    """torch's function without the defaults at the end: its errors list what it was given.

    Modules, whose dilation is a tuple, give all.
    """
    given, dilation = len(arguments), arguments[5]
    while given > 2 and isinstance(dilation, int) and arguments[given - 1] is _DEFAULTS[given - 3]:
        given -= 1
    function = native.conv1d if dims == 1 else native.conv2d
    output: Tensor = function(*arguments[:given])
    return output


def convolution(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """What all of the functions do: a convolution, a residual added, ReLU."""
    arguments = (input, weight, bias, stride, padding, dilation, groups)
    if is_compiling():
        output = _compiled(dims, *arguments, residual, relu)
    else:
        output = (_C.conv1d if dims == 1 else _C.conv2d)(*arguments, residual, relu)
    if output is not None:
        return output
    output = _native(dims, arguments)
    if residual is not None:
        output = output + residual
    return fast_relu(output) if relu else output


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    r"""``torch.nn.functional.conv2d``:
    :math:`y_{n o i j} = b_o + \sum_{c t u} w_{o c t u} x_{n c, si - p + dt, sj - p + du}`,
    over the channels c of o's group, x being 0 outside of the image.

    Args:
        input: (N, C, H, W) or (C, H, W), contiguous or channels_last (others are copied); kernels
            cover float32, bfloat16 and float16.
        weight: (O, C / groups, kernel height, kernel width).
        bias: (O), or None.
        stride, padding, dilation: an int, or one for height and one for width; padding may be
            'valid' (none) or 'same' (the output has the size of the input; stride 1).
        groups: into how many groups of channels input and output fall.

    Returns (N, O, H', W'), channels_last if ``input`` or ``weight`` is. Sums are float32. Errors
    are torch's; native torch computes where it is faster. See :func:`fastdl.allow_winograd`.
    Without a gradient the weight is kept in the order of the kernel while it does not change:
    docs/memory.md.
    """
    return convolution(2, input, weight, bias, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv1d``: :func:`conv2d` of (N, C, W) or (C, W) with a weight of
    (O, C / groups, kernel width)."""
    return convolution(1, input, weight, bias, stride, padding, dilation, groups)


def _module_conv(
    dims: int,
    module: torch.nn.modules.conv._ConvNd,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    padding: Size | str = module.padding
    if module.padding_mode != "zeros":
        around = module._reversed_padding_repeated_twice
        input, padding = native.pad(input, around, mode=module.padding_mode), 0
    return convolution(
        dims, input, weight, bias, module.stride, padding, module.dilation, module.groups
    )


class Conv1d(torch.nn.Conv1d):
    """``torch.nn.Conv1d`` on :func:`conv1d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _module_conv(1, self, input, weight, bias)


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` on :func:`conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _module_conv(2, self, input, weight, bias)
