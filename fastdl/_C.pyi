"""The native extension. Ops return None where native torch must compute the call."""

from collections.abc import Sequence

import torch
from torch import Tensor

def softmax(input: Tensor, dim: int | None, dtype: torch.dtype | None) -> Tensor | None: ...
def log_softmax(input: Tensor, dim: int | None, dtype: torch.dtype | None) -> Tensor | None: ...
def softmin(input: Tensor, dim: int | None, dtype: torch.dtype | None) -> Tensor | None: ...
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor | None: ...
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> Tensor | None: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor | None: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor | None: ...
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
) -> Tensor | None: ...
def adam_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    decoupled: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> list[int] | None: ...
def hand_over(op: str, reason: str) -> None: ...
def hand_overs() -> list[tuple[str, str, int]]: ...
def reset_hand_overs() -> None: ...
def set_strict(strict: bool) -> bool: ...
def cpu_isa() -> str: ...
def why_cuda_device_not_covered(device: int) -> str | None: ...
