"""dropout_add_layer_norm: the end of a transformer's sublayer in one pass; torch has no such op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


@overload
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    prenorm: Literal[False] = False,
) -> Tensor: ...
@overload
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    *,
    prenorm: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    prenorm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""``layer_norm(dropout(input, p, training) + residual, normalized_shape, weight, bias, eps)``.

    Args:
        input, residual: (*, normalized_shape), of one dtype; the kernel covers float32, float64,
            bfloat16, float16.
        normalized_shape, weight, bias, eps: as in :func:`fastdl.functional.layer_norm`.
        p, training: as in :func:`fastdl.functional.dropout`, with the same masks.
        prenorm: also returns the sum, for the next residual connection; gradients go through both.

    Returns the output, or (output, sum) with ``prenorm``: contiguous tensors of ``input``'s shape
    and dtype. The backward recomputes the mask from its seed and the normalisation from the sum,
    which is all that is kept. Other shapes, dtypes and devices are computed by the three functions
    of ``torch.nn.functional``, whose errors these are.
    """
    if not is_compiling():
        outputs = _C.dropout_add_layer_norm(
            input, residual, normalized_shape, weight, bias, p, training, eps
        )
        if outputs is not None:
            return outputs if prenorm else outputs[0]
    total = native.dropout(input, p, training) + residual
    output = native.layer_norm(total, normalized_shape, weight, bias, eps)
    return (output, total) if prenorm else output
