"""layer_norm and rms_norm: torch's functions and modules on fastdl's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""``torch.nn.functional.layer_norm``: over the last dimensions,
    :math:`y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} w + b`.

    Args:
        input: (*, normalized_shape), any memory layout; the kernel covers float32, float64,
            bfloat16, float16.
        normalized_shape: the sizes of the dimensions that are normalised together.
        weight, bias: of ``normalized_shape`` and ``input``'s dtype, or float32 with 16-bit inputs.
        eps: added to the (biased) variance.

    Returns a contiguous tensor of ``input``'s shape and dtype. Statistics are float32 (float64 for
    float64). Errors are torch's. Source: Ba, Kiros and Hinton, arXiv:1607.06450.
    """
    if not is_compiling():
        output = _C.layer_norm(input, normalized_shape, weight, bias, eps)
        if output is not None:
            return output
    return native.layer_norm(input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    r"""``torch.nn.functional.rms_norm``: over the last dimensions,
    :math:`y = \frac{x}{\sqrt{\mathrm{E}[x^2] + \epsilon}} w`.

    Args:
        input, normalized_shape: as in :func:`layer_norm`.
        weight: of ``normalized_shape`` and ``input``'s dtype.
        eps: added to the mean square; None takes the machine epsilon of the statistics' dtype.

    Returns, types and errors as in :func:`layer_norm`. Source: Zhang and Sennrich,
    arXiv:1910.07467.
    """
    if not is_compiling():
        output = _C.rms_norm(input, normalized_shape, weight, eps)
        if output is not None:
            return output
    return native.rms_norm(input, normalized_shape, weight, eps)


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` on :func:`layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` on :func:`rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)
