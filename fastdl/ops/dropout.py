"""dropout: torch's function and module on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    r"""``torch.nn.functional.dropout``: each element becomes 0 with probability ``p``, else
    :math:`x / (1 - p)`.

    Args:
        input: any shape and memory layout; the kernel covers float32, float64, bfloat16, float16.
        p: the probability, exact to :math:`2^{-48}`.
        training: otherwise returns ``input`` and draws nothing.
        inplace: writes into ``input``.

    Returns a tensor of ``input``'s shape, dtype and memory layout. Every call draws one seed from
    torch's default generator of the device, so that ``torch.manual_seed`` and checkpointing repeat
    its mask; the mask of a seed is not the one of native torch, though, nor the same on the CPU and
    a GPU. No mask is stored: the backward makes it again. Inside a CUDA graph that is being
    captured, native torch computes. Errors are torch's.

    Source: Srivastava et al., JMLR 15 (2014); random numbers of Salmon et al., SC 2011 (Philox).
    """
    if not is_compiling():
        output = _C.dropout(input, p, training, inplace)
        if output is not None:
            return output
    return native.dropout(input, p, training, inplace)


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` on :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training, self.inplace)
