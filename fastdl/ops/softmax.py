"""softmax, log_softmax and softmin: torch's functions and modules on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""``torch.nn.functional.softmax``: :math:`y_i = \exp(x_i) / \sum_j \exp(x_j)` along ``dim``.

    Args:
        input: any shape and memory layout; the kernel covers float32, float64, bfloat16, float16.
        dim: the dimension that sums to 1.
        dtype: computes and returns in this dtype; from 16 bits to float32 in the same pass.

    Returns a contiguous tensor of ``input``'s shape. 16-bit inputs are computed in float32 and
    rounded once. A row of only ``-inf``, or with NaN or ``+inf``, gives NaN. Errors are torch's.
    """
    if not is_compiling():
        output = _C.softmax(input, dim, dtype)
        if output is not None:
            return output
    return native.softmax(input, dim, _stacklevel + 1, dtype)


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""``torch.nn.functional.log_softmax``: :math:`y_i = x_i - \log \sum_j \exp(x_j)`.

    Arguments, types and errors as in :func:`softmax`.
    """
    if not is_compiling():
        output = _C.log_softmax(input, dim, dtype)
        if output is not None:
            return output
    return native.log_softmax(input, dim, _stacklevel + 1, dtype)


def softmin(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""``torch.nn.functional.softmin``: :math:`y_i = \exp(-x_i) / \sum_j \exp(-x_j)`.

    Arguments, types and errors as in :func:`softmax`.
    """
    if not is_compiling():
        output = _C.softmin(input, dim, dtype)
        if output is not None:
            return output
    return native.softmin(input, dim, _stacklevel + 1, dtype)


class Softmax(torch.nn.Softmax):
    """``torch.nn.Softmax`` on :func:`softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, 5)


class LogSoftmax(torch.nn.LogSoftmax):
    """``torch.nn.LogSoftmax`` on :func:`log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return log_softmax(input, self.dim, 5)


class Softmin(torch.nn.Softmin):
    """``torch.nn.Softmin`` on :func:`softmin`."""

    def forward(self, input: Tensor) -> Tensor:
        return softmin(input, self.dim, 5)
