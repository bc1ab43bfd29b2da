"""cross_entropy and nll_loss: torch's functions and modules on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""``torch.nn.functional.cross_entropy``: of logits :math:`x` and class :math:`y`,
    :math:`l = w_y \left(\log \sum_j \exp(x_j) - x_y\right)`.

    Log-probabilities are never written to memory. Where the losses are summed and ``input``
    requires a gradient, that is made in the forward while each row is in cache, and the backward
    multiplies it by the loss's gradient (in float16, and with ``reduction="none"``, the backward
    makes it).

    Args:
        input: (N, C), (N, C, d1, ...) or (C); the kernel covers float32, float64, bfloat16,
            float16.
        target: class indices (N), (N, d1, ...) or (), int64 or uint8; or probabilities of
            ``input``'s shape and dtype.
        weight: (C), of ``input``'s dtype.
        size_average, reduce: deprecated by torch; with them torch computes.
        ignore_index: rows of this target have no loss and no gradient.
        reduction: "mean" divides by the sum of the targets' weights (for probabilities by the
            number of rows), "sum", or "none".
        label_smoothing: this part of each target is spread evenly over all classes.

    Returns a number, or for "none" the shape of the indices; computed in float32 (float64 for
    float64) and rounded once. A mean over nothing is NaN. Errors are torch's; on a GPU a target out
    of bounds stops the kernel. Source: label smoothing: Szegedy et al., arXiv:1512.00567; softmax
    in one pass: Milakov and Gimelshein, arXiv:1805.02867.
    """
    if not is_compiling() and size_average is None and reduce is None:
        loss = _C.cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
        if loss is not None:
            return loss
    return native.cross_entropy(
        input,
        target,
        weight,
        size_average,
        ignore_index,
        reduce,
        reduction,
        label_smoothing,
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""``torch.nn.functional.nll_loss``: :math:`l = -w_y x_y` of log-probabilities :math:`x`.

    Arguments, types and errors as in :func:`cross_entropy`; targets are class indices.
    """
    if not is_compiling() and size_average is None and reduce is None:
        loss = _C.nll_loss(input, target, weight, reduction, ignore_index)
        if loss is not None:
            return loss
    return native.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` on :func:`cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss):
    """``torch.nn.NLLLoss`` on :func:`nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
