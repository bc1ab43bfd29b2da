"""embedding: torch's function and module on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    r"""``torch.nn.functional.embedding``: :math:`y_i = W_{x_i}`, rows looked up by index.

    Args:
        input: indices of any shape and memory layout, int64 or int32, from 0 to V - 1.
        weight: (V, D); the kernel covers float32, float64, bfloat16, float16.
        padding_idx: the row that gets no gradient.
        max_norm, norm_type, scale_grad_by_freq, sparse: as in torch, computed by native torch.

    Returns (*, D). The gradient of ``weight`` is dense; 16-bit gradients are summed in float32, in
    the order of the indices: the same bits with any number of threads. Errors are torch's.
    """
    if not is_compiling():
        output = _C.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
        if output is not None:
            return output
    return native.embedding(
        input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )


class Embedding(torch.nn.Embedding):
    """``torch.nn.Embedding`` on :func:`embedding`."""

    def forward(self, input: Tensor) -> Tensor:
        return embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
