"""Float64 formulas of the losses, as in reference.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The mean, the sum, or all losses."""
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(x - t)^2."""
    return reduced((input.double() - target.double()).square(), reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|x - t|."""
    return reduced((input.double() - target.double()).abs(), reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d^2 / (2 beta) where d = |x - t| < beta, else d - beta / 2."""
    d = (input.double() - target.double()).abs()
    inside = d.clamp(max=beta)
    return reduced(inside.square() / (2 * beta) + (d - inside) if beta > 0 else d, reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """delta times the smooth_l1 loss of beta = delta."""
    return delta * smooth_l1_loss(input, target, reduction, delta)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-w (p t log sigmoid(x) + (1 - t) log sigmoid(-x))."""
    x, t = input.double(), target.double()
    positive = t if pos_weight is None else t * pos_weight.double()
    log_sigmoid = torch.nn.functional.logsigmoid
    loss = -(positive * log_sigmoid(x) + (1 - t) * log_sigmoid(-x))
    return reduced(loss if weight is None else loss * weight.double(), reduction)


def weighted_reduction(losses: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """The losses as they are, their sum, or that divided by the sum of the weights."""
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-weight[target] * input[target] along the classes."""
    x, dim = input.double(), min(input.dim() - 1, 1)
    ignored = target == ignore_index
    index = target.long().masked_fill(ignored, 0)
    w = torch.ones(x.shape[dim]).double() if weight is None else weight.double()
    weights = w[index].masked_fill(ignored, 0)
    picked = x.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    return weighted_reduction((-w[index] * picked).masked_fill(ignored, 0), weights, reduction)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """cross_entropy of input @ linear_weight.T + linear_bias."""
    logits = input.double() @ linear_weight.double().T
    if linear_bias is not None:
        logits = logits + linear_bias.double()
    return cross_entropy(logits, target, **options)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum weight * target * torch.log_softmax(input), the target smoothed, along the classes."""
    dim = min(input.dim() - 1, 1)
    classes = input.shape[dim]
    log_probability = torch.log_softmax(input, dim)
    shape = [classes if d == dim else 1 for d in range(input.dim())]
    w = (torch.ones(classes) if weight is None else weight).double().reshape(shape)
    if target.is_floating_point():
        smoothed = target.double() * (1 - label_smoothing) + label_smoothing / classes
        losses = -(log_probability * smoothed * w).sum(dim)
        return weighted_reduction(losses, torch.ones_like(losses), reduction)
    options: Any = {"ignore_index": ignore_index, "reduction": "none"}
    losses = nll_loss(log_probability, target, weight, **options)
    if label_smoothing > 0:
        # Not -(log_probability * w).sum(dim): its gradient is a sum of as many equal numbers as
        # there are classes, which rounds the same way each time.
        smooth = w.sum() * input.logsumexp(dim) - (input * w).sum(dim)
        smooth = smooth.masked_fill(target == ignore_index, 0)
        losses = (1 - label_smoothing) * losses + label_smoothing / classes * smooth
    index = target.long().masked_fill(target == ignore_index, 0)
    weights = w.reshape(-1)[index].masked_fill(target == ignore_index, 0)
    return weighted_reduction(losses, weights, reduction)
