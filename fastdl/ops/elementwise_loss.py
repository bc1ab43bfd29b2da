"""mse, l1, smooth_l1, huber and binary cross-entropy of logits on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""``torch.nn.functional.mse_loss``: the mean of :math:`(x_i - t_i)^2`.

    Args:
        input, target: of one shape and dtype; the kernel covers float32, float64, bfloat16,
            float16. Both may require a gradient.
        reduction: "mean", "sum", or "none" for a loss per element.
        size_average, reduce, weight: as torch has them, computed by native torch.

    16-bit inputs are computed and summed in float32, and rounded once. Sums are the same with any
    number of threads. Errors and warnings are torch's.
    """
    if not is_compiling():
        output = _C.mse_loss(input, target, size_average, reduce, reduction, weight)
        if output is not None:
            return output
    return native.mse_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""``torch.nn.functional.l1_loss``: the mean of :math:`|x_i - t_i|`.

    Arguments, types and errors as in :func:`mse_loss`.
    """
    if not is_compiling():
        output = _C.l1_loss(input, target, size_average, reduce, reduction, weight)
        if output is not None:
            return output
    return native.l1_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    r"""``torch.nn.functional.smooth_l1_loss``: the mean of :math:`d^2 / (2 \beta)` where
    :math:`d = |x_i - t_i| < \beta`, else of :math:`d - \beta / 2`; with ``beta`` 0 the l1 loss.

    Other arguments, types and errors as in :func:`mse_loss`. Source: Girshick, arXiv:1504.08083.
    """
    if not is_compiling():
        output = _C.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
        if output is not None:
            return output
    return native.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""``torch.nn.functional.huber_loss``: the mean of :math:`d^2 / 2` where
    :math:`d = |x_i - t_i| < \delta`, else of :math:`\delta (d - \delta / 2)`.

    Other arguments, types and errors as in :func:`mse_loss`.
    """
    if not is_compiling():
        output = _C.huber_loss(input, target, reduction, delta, weight)
        if output is not None:
            return output
    return native.huber_loss(input, target, reduction, delta, weight)  # type: ignore[call-arg]


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""``torch.nn.functional.binary_cross_entropy_with_logits``: the mean of
    :math:`-w_i (p_i t_i \log \sigma(x_i) + (1 - t_i) \log (1 - \sigma(x_i)))`.

    Args:
        input: the logits x.
        target: the probabilities t, of ``input``'s shape.
        weight, pos_weight: w and p, broadcast to ``input``'s shape, without a gradient; 1 if left
            out.

    Other arguments, types and errors as in :func:`mse_loss`.
    """
    if not is_compiling():
        output = _C.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
        if output is not None:
            return output
    return native.binary_cross_entropy_with_logits(
        input, target, weight, size_average, reduce, reduction, pos_weight
    )


class MSELoss(torch.nn.MSELoss):
    """``torch.nn.MSELoss`` on :func:`mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return mse_loss(input, target, reduction=self.reduction)


class L1Loss(torch.nn.L1Loss):
    """``torch.nn.L1Loss`` on :func:`l1_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """``torch.nn.SmoothL1Loss`` on :func:`smooth_l1_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(torch.nn.HuberLoss):
    """``torch.nn.HuberLoss`` on :func:`huber_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss`` on :func:`binary_cross_entropy_with_logits`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
