"""The native extension. Ops return None where native torch must compute the call."""

from collections.abc import Sequence

import torch
from torch import Tensor

Sizes = int | Sequence[int | None] | None

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
def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> Tensor | None: ...
def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> Tensor | None: ...
def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> tuple[Tensor, Tensor] | None: ...
def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> tuple[Tensor, Tensor] | None: ...
def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor | None: ...
def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor | None: ...
def adaptive_max_pool1d(input: Tensor, output_size: Sizes) -> Tensor | None: ...
def adaptive_max_pool2d(input: Tensor, output_size: Sizes) -> Tensor | None: ...
def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: Sizes
) -> tuple[Tensor, Tensor] | None: ...
def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: Sizes
) -> tuple[Tensor, Tensor] | None: ...
def adaptive_avg_pool1d(input: Tensor, output_size: Sizes) -> Tensor | None: ...
def adaptive_avg_pool2d(input: Tensor, output_size: Sizes) -> Tensor | None: ...
def hand_over(op: str, reason: str) -> None: ...
def hand_overs() -> list[tuple[str, str, int]]: ...
def reset_hand_overs() -> None: ...
def set_strict(strict: bool) -> bool: ...
def cpu_isa() -> str: ...
def why_cuda_device_not_covered(device: int) -> str | None: ...
