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
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    weight: Tensor | None,
) -> Tensor | None: ...
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    weight: Tensor | None,
) -> Tensor | None: ...
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    beta: float,
) -> Tensor | None: ...
def huber_loss(
    input: Tensor, target: Tensor, reduction: str, delta: float, weight: Tensor | None
) -> Tensor | None: ...
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    pos_weight: Tensor | None,
) -> Tensor | None: ...
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> Tensor | None: ...
def relu(input: Tensor, inplace: bool) -> Tensor | None: ...
def sigmoid(input: Tensor) -> Tensor | None: ...
def tanh(input: Tensor) -> Tensor | None: ...
def gelu(input: Tensor, approximate: str) -> Tensor | None: ...
def silu(input: Tensor, inplace: bool) -> Tensor | None: ...
def leaky_relu(input: Tensor, negative_slope: float, inplace: bool) -> Tensor | None: ...
def elu(input: Tensor, alpha: float, inplace: bool) -> Tensor | None: ...
def dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor | None: ...
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    p: float,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor] | None: ...
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
    clip: Tensor | None,
) -> list[int] | None: ...
def sgd_step(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
) -> list[int] | None: ...
def adagrad_step(
    params: list[Tensor],
    grads: list[Tensor],
    sums: list[Tensor],
    steps: list[Tensor],
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
) -> list[int] | None: ...
def rmsprop_step(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    grad_avgs: list[Tensor],
    momentum_buffers: list[Tensor],
    steps: list[Tensor],
    lr: float,
    alpha: float,
    weight_decay: float,
    eps: float,
    momentum: float,
    maximize: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
) -> list[int] | None: ...
def grad_norm(
    grads: list[Tensor], max_norm: float, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor] | None: ...
def scale_grads(grads: list[Tensor], coefficient: Tensor) -> None: ...
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor | None: ...
def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
) -> Tensor | None: ...
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | None: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None: ...
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lowest: int | None,
    highest: int | None,
    begin: Tensor | None,
    end: Tensor | None,
    allowed: Tensor | None,
    bias: Tensor | None,
    slopes: Tensor | None,
    slope_offset: int,
    soft_cap: float,
    dropout_p: float,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None: ...
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor | None: ...
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor | None: ...
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
def set_allow_winograd(allow: bool) -> bool: ...
def always_use_conv_kernels(always: bool) -> bool: ...
def packed_weights() -> tuple[int, int]: ...
def limit_packed_weights(bytes: int) -> int: ...
def set_strict(strict: bool) -> bool: ...
def cpu_isa() -> str: ...
def why_cuda_device_not_covered(device: int) -> str | None: ...
