"""linear_cross_entropy: torch's function and module, the logits never existing whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def _composed(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int | None = None,
    options: Any = None,
    **others: Any,
) -> Tensor:
    """For versions of torch that do not have the function."""
    if options is not None:
        raise TypeError("linear_cross_entropy: this version of torch knows no options")
    logits = native.linear(input, linear_weight.flatten(0, -2))
    logits = logits.reshape(logits.shape[:-1] + linear_weight.shape[:-1])
    if linear_bias is not None:
        logits = logits + linear_bias
    ignored = -100 if ignore_index is None else ignore_index
    return native.cross_entropy(logits, target, ignore_index=ignored, **others)


_native = getattr(native, "linear_cross_entropy", _composed)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    r"""``torch.nn.functional.linear_cross_entropy``:
    ``cross_entropy(input @ linear_weight.T + linear_bias, target)`` by chunks of rows.

    Of the logits (N, C) only a chunk of 64 MiB (512 on a GPU) exists at a time. Where the losses
    are summed, the gradients of ``input``, ``linear_weight`` and ``linear_bias`` are made in the
    forward (in float16, and with ``reduction="none"``, the backward makes the logits again).

    Args:
        input: (N, in_features); the kernel covers float32, float64, bfloat16, float16.
        linear_weight: (C, in_features), of ``input``'s dtype. With further dimensions, or ``input``
            of one, torch computes.
        target, weight, reduction, label_smoothing: as in :func:`cross_entropy`.
        linear_bias: (C).
        ignore_index: None stands for -100 with class indices.
        options: torch's own chunks; with them torch computes.

    Returns, types and errors as in :func:`cross_entropy`. Also there for versions of torch that
    lack it. Source: Hsu et al. (Liger kernels), arXiv:2410.10989; Wijmans et al. (cut cross
    entropy), arXiv:2411.09009.
    """
    ignores = ignore_index is not None
    if is_compiling() or options is not None:
        pass
    elif ignores and isinstance(target, Tensor) and target.is_floating_point():
        _C.hand_over("linear_cross_entropy", "ignore_index with probabilities")
    else:
        loss = _C.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias,
            weight,
            reduction,
            -100 if ignore_index is None else ignore_index,
            label_smoothing,
        )
        if loss is not None:
            return loss
    loss = _native(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )
    return loss


if hasattr(torch.nn, "LinearCrossEntropyLoss"):

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """``torch.nn.LinearCrossEntropyLoss`` on :func:`linear_cross_entropy`."""

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            linear = self.linear
            shape = (self.num_classes, *self.out_features)
            return linear_cross_entropy(
                input,
                linear.weight.reshape((*shape, linear.in_features)) if shape[1:] else linear.weight,
                target,
                linear_bias=None if linear.bias is None else linear.bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )
