"""relu, sigmoid, tanh, gelu, silu, leaky_relu, elu: torch's functions and modules on fastdl."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""``torch.nn.functional.relu``: :math:`y = \max(x, 0)`, elementwise.

    Args:
        input: any shape and memory layout; the kernel covers float32, float64, bfloat16, float16.
        inplace: writes into ``input``. With a gradient native torch does that for leaves, views,
            ``silu``, ``elu`` and negative slopes.

    Returns a tensor of ``input``'s shape, dtype and memory layout; NaN stays NaN. Errors are
    torch's. This holds for the other functions of this file, too; 16-bit inputs are computed in
    float32 and rounded once.
    """
    if not is_compiling():
        output = _C.relu(input, inplace)
        if output is not None:
            return output
    return native.relu(input, inplace)


def sigmoid(input: Tensor) -> Tensor:
    r"""``torch.nn.functional.sigmoid``: :math:`y = 1 / (1 + \exp(-x))`; see :func:`relu`.

    Results below the smallest normal number are 0.
    """
    if not is_compiling():
        output = _C.sigmoid(input)
        if output is not None:
            return output
    return native.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    r"""``torch.nn.functional.tanh``: :math:`y = \tanh(x)`; see :func:`relu`."""
    if not is_compiling():
        output = _C.tanh(input)
        if output is not None:
            return output
    return native.tanh(input)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    r"""``torch.nn.functional.gelu``: :math:`y = x \Phi(x)`, :math:`\Phi` the standard normal
    distribution; see :func:`relu`.

    Args:
        input: as in :func:`relu`.
        approximate: 'none', or 'tanh' for
            :math:`y = x (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3))) / 2`.

    Source: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    if not is_compiling():
        output = _C.gelu(input, approximate)
        if output is not None:
            return output
    return native.gelu(input, approximate=approximate)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""``torch.nn.functional.silu``: :math:`y = x / (1 + \exp(-x))`; see :func:`relu`."""
    if not is_compiling():
        output = _C.silu(input, inplace)
        if output is not None:
            return output
    return native.silu(input, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    r"""``torch.nn.functional.leaky_relu``: :math:`y = x` where :math:`x > 0`, else
    ``negative_slope`` :math:`x`; see :func:`relu`.
    """
    if not is_compiling():
        output = _C.leaky_relu(input, negative_slope, inplace)
        if output is not None:
            return output
    return native.leaky_relu(input, negative_slope, inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""``torch.nn.functional.elu``: :math:`y = x` where :math:`x > 0`, else
    ``alpha`` :math:`(\exp(x) - 1)`; see :func:`relu`.

    Source: Clevert, Unterthiner and Hochreiter, arXiv:1511.07289.
    """
    if not is_compiling():
        output = _C.elu(input, alpha, inplace)
        if output is not None:
            return output
    return native.elu(input, alpha, inplace)


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` on :func:`relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """``torch.nn.Sigmoid`` on :func:`sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        # Errors of the module are those of torch.sigmoid, not of Tensor.sigmoid.
        output = None if is_compiling() else _C.sigmoid(input)
        return torch.sigmoid(input) if output is None else output


class Tanh(torch.nn.Tanh):
    """``torch.nn.Tanh`` on :func:`tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        output = None if is_compiling() else _C.tanh(input)
        return torch.tanh(input) if output is None else output


class GELU(torch.nn.GELU):
    """``torch.nn.GELU`` on :func:`gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, self.approximate)


class SiLU(torch.nn.SiLU):
    """``torch.nn.SiLU`` on :func:`silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return silu(input, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` on :func:`leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.negative_slope, self.inplace)


class ELU(torch.nn.ELU):
    """``torch.nn.ELU`` on :func:`elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return elu(input, self.alpha, self.inplace)
