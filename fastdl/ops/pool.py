"""Max, average and adaptive pooling: torch's functions and modules on fastdl's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C

native: Any = torch.nn.functional  # its stubs name fewer sequences than it takes

Size = int | Sequence[int]
OutputSize = int | None | Sequence[int | None]
MaxPooled = Tensor | tuple[Tensor, Tensor]


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> MaxPooled:
    r"""``torch.nn.functional.max_pool1d``: :math:`y_i = \max_t x_{i s - p + t d}`.

    Arguments, types and errors as in :func:`max_pool2d`, for an input of shape (n, c, l) or (c, l).
    """
    if not is_compiling():
        pool = _C.max_pool1d_with_indices if return_indices else _C.max_pool1d
        output = pool(input, kernel_size, stride, padding, dilation, ceil_mode)
        if output is not None:
            return output
    result: MaxPooled = native.max_pool1d(
        input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )
    return result


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> MaxPooled:
    r"""``torch.nn.functional.max_pool2d``: the maximum of each window,
    :math:`y_{ij} = \max_{t, u} x_{i s_h - p_h + t d_h, j s_w - p_w + u d_w}`.

    Args:
        input: (n, c, h, w) or (c, h, w); contiguous and channels_last layouts, which the output
            keeps; the kernel covers float32, float64, bfloat16, float16.
        kernel_size, stride, padding, dilation: of the windows, for both dimensions or each; the
            stride is the kernel's size if None.
        ceil_mode: windows may reach beyond the end of the padded input.
        return_indices: also return where each maximum is in its plane, int64.

    Of equal maxima the first counts, and a NaN is the maximum. Errors are torch's.
    """
    if not is_compiling():
        pool = _C.max_pool2d_with_indices if return_indices else _C.max_pool2d
        output = pool(input, kernel_size, stride, padding, dilation, ceil_mode)
        if output is not None:
            return output
    result: MaxPooled = native.max_pool2d(
        input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )
    return result


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    r"""``torch.nn.functional.avg_pool1d``: :math:`y_i = \frac{1}{k} \sum_t x_{i s - p + t}`.

    Arguments, types and errors as in :func:`avg_pool2d`, for an input of shape (n, c, l) or (c, l).
    """
    if not is_compiling():
        output = _C.avg_pool1d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, None
        )
        if output is not None:
            return output
    stride = () if stride is None else stride
    result: Tensor = native.avg_pool1d(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad
    )
    return result


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    r"""``torch.nn.functional.avg_pool2d``: the mean of each window,
    :math:`y_{ij} = \frac{1}{k_h k_w} \sum_{t, u} x_{i s_h - p_h + t, j s_w - p_w + u}`.

    Args:
        input, kernel_size, stride, padding, ceil_mode: as in :func:`max_pool2d`.
        count_include_pad: zeros of the padding count as elements.
        divisor_override: divides the sums instead of the number of elements.

    Sums are float32 (float64 for float64), rounded once. Errors are torch's.
    """
    if not is_compiling():
        output = _C.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        if output is not None:
            return output
    result: Tensor = native.avg_pool2d(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return result


def adaptive_max_pool1d(
    input: Tensor, output_size: Size, return_indices: bool = False
) -> MaxPooled:
    r"""``torch.nn.functional.adaptive_max_pool1d``: as :func:`adaptive_max_pool2d`, for an input of
    shape (n, c, l) or (c, l)."""
    if not is_compiling():
        pool = _C.adaptive_max_pool1d_with_indices if return_indices else _C.adaptive_max_pool1d
        output = pool(input, output_size)
        if output is not None:
            return output
    result: MaxPooled = native.adaptive_max_pool1d(input, output_size, return_indices)
    return result


def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> MaxPooled:
    r"""``torch.nn.functional.adaptive_max_pool2d``: the maxima of as many windows as
    ``output_size`` says (None: as the input has), of the elements from
    :math:`\lfloor i h / h_{out} \rfloor` to before :math:`\lceil (i + 1) h / h_{out} \rceil`.

    Input, indices, types and errors as in :func:`max_pool2d`.
    """
    if not is_compiling():
        pool = _C.adaptive_max_pool2d_with_indices if return_indices else _C.adaptive_max_pool2d
        output = pool(input, output_size)
        if output is not None:
            return output
    result: MaxPooled = native.adaptive_max_pool2d(input, output_size, return_indices)
    return result


def adaptive_avg_pool1d(input: Tensor, output_size: Size) -> Tensor:
    r"""``torch.nn.functional.adaptive_avg_pool1d``: the means of the windows of
    :func:`adaptive_max_pool1d`. Types and errors as in :func:`avg_pool1d`."""
    if not is_compiling():
        output = _C.adaptive_avg_pool1d(input, output_size)
        if output is not None:
            return output
    result: Tensor = native.adaptive_avg_pool1d(input, output_size)
    return result


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    r"""``torch.nn.functional.adaptive_avg_pool2d``: the means of the windows of
    :func:`adaptive_max_pool2d`. Types and errors as in :func:`avg_pool2d`."""
    if not is_compiling():
        output = _C.adaptive_avg_pool2d(input, output_size)
        if output is not None:
            return output
    result: Tensor = native.adaptive_avg_pool2d(input, output_size)
    return result


class MaxPool1d(torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` on :func:`max_pool1d`."""

    def forward(self, input: Tensor) -> MaxPooled:
        return max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` on :func:`max_pool2d`."""

    def forward(self, input: Tensor) -> MaxPooled:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool1d(torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` on :func:`avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` on :func:`avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d`` on :func:`adaptive_max_pool1d`."""

    def forward(self, input: Tensor) -> MaxPooled:
        return adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` on :func:`adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> MaxPooled:
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d`` on :func:`adaptive_avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` on :func:`adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)
