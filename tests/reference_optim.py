"""The optimizers' formulas as published, in float64, with torch's names of options and states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Step = Callable[..., tuple[Tensor, State]]


@dataclass
class AdamState:
    """What Adam keeps for one parameter, in float64; `step` counts the steps taken."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor
    step: int = 0

    @classmethod
    def zeros(cls, like: Tensor) -> AdamState:
        zero = torch.zeros_like(like, dtype=torch.float64, memory_format=torch.contiguous_format)
        return cls(zero, zero, zero)


def adam_step(
    param: Tensor,
    grad: Tensor,
    state: AdamState,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> tuple[Tensor, AdamState]:
    """One step of Adam (or AdamW, with decoupled decay) as published: new parameter and state."""
    p, g = param.double(), grad.double()
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    beta1, beta2 = betas
    step = state.step + 1
    exp_avg = beta1 * state.exp_avg + (1 - beta1) * g
    exp_avg_sq = beta2 * state.exp_avg_sq + (1 - beta2) * g * g
    max_exp_avg_sq = torch.maximum(state.max_exp_avg_sq, exp_avg_sq)
    mean = exp_avg / (1 - beta1**step)
    variance = (max_exp_avg_sq if amsgrad else exp_avg_sq) / (1 - beta2**step)
    p = p - lr * mean / (torch.sqrt(variance) + eps)
    return p, AdamState(exp_avg, exp_avg_sq, max_exp_avg_sq, step)


def adam(
    param: Tensor, grad: Tensor, state: State, *, weight_decay: float = 0.0, **options: Any
) -> tuple[Tensor, State]:
    """Adam, with the state as a dictionary."""
    kept = AdamState(**state) if state else AdamState.zeros(param)
    p, kept = adam_step(param, grad, kept, weight_decay=weight_decay, **options)
    return p, vars(kept)


def adamw(
    param: Tensor, grad: Tensor, state: State, *, weight_decay: float = 0.01, **options: Any
) -> tuple[Tensor, State]:
    """AdamW: the same with decoupled weight decay."""
    decay = {"weight_decay": weight_decay, "decoupled_weight_decay": True}
    return adam(param, grad, state, **decay, **options)


def gradient(param: Tensor, grad: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    """The gradient with its sign and with L2 decay."""
    g = -grad.double() if maximize else grad.double()
    return g + weight_decay * param.double()


def sgd(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, State]:
    """b = momentum b + (1 - dampening) g, first g; p -= lr b, or lr (g + momentum b)."""
    g = gradient(param, grad, weight_decay, maximize)
    if momentum == 0:
        return param.double() - lr * g, {}
    b = momentum * state["momentum_buffer"] + (1 - dampening) * g if state else g
    p = param.double() - lr * (g + momentum * b if nesterov else b)
    return p, {"momentum_buffer": b}


def adagrad(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> tuple[Tensor, State]:
    """s += g^2; p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)."""
    g = gradient(param, grad, weight_decay, maximize)
    step = state.get("step", 0) + 1
    total = state.get("sum", initial_accumulator_value) + g * g
    p = param.double() - lr / (1 + (step - 1) * lr_decay) * g / (torch.sqrt(total) + eps)
    return p, {"step": step, "sum": total}


def rmsprop(
    param: Tensor,
    grad: Tensor,
    state: State,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, State]:
    """v, a: averages of g^2 and g; b = momentum b + g / (sqrt(v - a^2) + eps); p -= lr b."""
    g = gradient(param, grad, weight_decay, maximize)
    new: State = {"step": state.get("step", 0) + 1}
    new["square_avg"] = alpha * state.get("square_avg", 0.0) + (1 - alpha) * g * g
    variance = new["square_avg"]
    if centered:
        new["grad_avg"] = alpha * state.get("grad_avg", 0.0) + (1 - alpha) * g
        variance = variance - new["grad_avg"].square()
    update = g / (torch.sqrt(variance) + eps)
    if momentum > 0:
        update = momentum * state.get("momentum_buffer", 0.0) + update
        new["momentum_buffer"] = update
    return param.double() - lr * update, new


STEPS: dict[str, Step] = {
    "Adam": adam,
    "AdamW": adamw,
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
}
