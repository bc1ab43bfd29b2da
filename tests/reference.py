"""The formulas that fastdl is measured against, as plainly as torch can write them in float64.

The functions have the names and arguments of torch.nn.functional, so that a case can be called with
either module. Their gradients are autograd's through these formulas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.reference_attention import scaled_dot_product_attention  # noqa: F401
from tests.reference_conv import (  # noqa: F401
    conv1d,
    conv1d_add,
    conv1d_relu,
    conv2d,
    conv2d_add,
    conv2d_relu,
    each,
)
from tests.reference_losses import (  # noqa: F401
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    linear_cross_entropy,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)


def largest(x: Tensor, dim: int) -> Tensor | float:
    """The maximum along `dim` as a constant; an empty tensor has none and needs none."""
    return x.detach().amax(dim, keepdim=True) if x.numel() > 0 else 0.0


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """exp(x - max x) / sum exp(x - max x), always in float64: `dtype` is there for the callers."""
    x = input.double()
    exponentials = torch.exp(x - largest(x, dim))
    return exponentials / exponentials.sum(dim, keepdim=True)


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """x - max x - log sum exp(x - max x)."""
    x = input.double()
    shifted = x - largest(x, dim)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def softmin(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """softmax(-x)."""
    return softmax(-input.double(), dim)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(mean (x - mean)^2 + eps) * weight + bias over the last dimensions."""
    x = input.double()
    dims = tuple(range(-len(normalized_shape), 0))
    centered = x - x.mean(dims, keepdim=True)
    output = centered / torch.sqrt(centered.square().mean(dims, keepdim=True) + eps)
    if weight is not None:
        output = output * weight.double()
    if bias is not None:
        output = output + bias.double()
    return output


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last dimensions."""
    x = input.double()
    dims = tuple(range(-len(normalized_shape), 0))
    output = x / torch.sqrt(x.square().mean(dims, keepdim=True) + eps)
    return output if weight is None else output * weight.double()


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of weight that input names; that of padding_idx is a constant."""
    rows = weight.double()[input.long()]
    if padding_idx is None:
        return rows
    is_padding = (input == padding_idx % len(weight)).unsqueeze(-1)
    return torch.where(is_padding, rows.detach(), rows)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0), whose derivative at 0 is 0; `inplace` is there for the callers."""
    x = input.double()
    return torch.where(x <= 0, torch.zeros_like(x), x)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + torch.exp(-input.double()))


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(input.double())


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution, or times a sigmoid near it."""
    x = input.double()
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return x * ((1 + torch.tanh(inner)) / 2)
    return x * (torch.erfc(-x * math.sqrt(0.5)) / 2)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x / (1 + exp(-x))."""
    x = input.double()
    return x / (1 + torch.exp(-x))


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x, or negative_slope x where x is not positive."""
    x = input.double()
    return torch.where(x > 0, x, x * negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x, or alpha (exp(x) - 1) where x is not positive."""
    x = input.double()
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def of_channels(values: Tensor, like: Tensor) -> Tensor:
    """One number a channel, the second dimension of `like`, in float64."""
    return values.double().reshape(1, -1, *[1] * (like.dim() - 2))


def scaled(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Times the weight and plus the bias of each channel."""
    if weight is not None:
        normalised = normalised * of_channels(weight, normalised)
    return normalised if bias is None else normalised + of_channels(bias, normalised)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias of channels; moves no statistics."""
    x = input.double()
    if training:
        dims = [0, *range(2, x.dim())]
        centered = x - x.mean(dims, keepdim=True)
        var = centered.square().mean(dims, keepdim=True)
    else:
        assert running_mean is not None and running_var is not None
        centered, var = x - of_channels(running_mean, x), of_channels(running_var, x)
    return scaled(centered / torch.sqrt(var + eps), weight, bias)


def batch_norm_relu(input: Tensor, *args: Any, residual: Tensor | None = None) -> Tensor:
    """relu(batch_norm + residual)."""
    output = batch_norm(input, *args)
    return torch.relu(output if residual is None else output + residual.double())


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, each sample's groups of channels by itself."""
    x = input.double().reshape(input.shape[0], num_groups, -1)
    centered = x - x.mean(-1, keepdim=True)
    normalised = centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + eps)
    return scaled(normalised.reshape(input.shape), weight, bias)


def pooled(
    reduce: Callable[[Tensor, int], Tensor], input: Tensor, windows: Sequence[Sequence[Tensor]]
) -> Tensor:
    """reduce(elements of a window, its number) for all windows over the last len(windows) dims.

    `windows` has for each dimension the indices of the elements of each window.
    """
    dims = len(windows)
    results = []
    for number, chosen in enumerate(itertools.product(*windows)):
        part = input
        for dim, indices in zip(range(-dims, 0), chosen, strict=True):
            part = part.index_select(dim, indices)
        results.append(reduce(part.flatten(-dims), number))
    sizes = [len(axis) for axis in windows]
    return torch.stack(results, -1).reshape(*input.shape[:-dims], *sizes)


def sliding_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> list[Tensor]:
    """The indices inside the input of i stride - padding + t dilation for t < kernel, for all i."""
    last = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (math.ceil if ceil_mode else math.floor)(last / stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    taps = torch.arange(kernel) * dilation - padding
    windows = [taps + i * stride for i in range(count)]
    return [window[(window >= 0) & (window < size)] for window in windows]


def adaptive_windows(size: int, output: int) -> list[Tensor]:
    """From floor(i size / output) to before ceil((i + 1) size / output), for all i."""
    return [torch.arange(i * size // output, -(-(i + 1) * size // output)) for i in range(output)]


def max_pool(
    dims: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window; its gradient goes to the first one."""
    numbers = zip(
        input.shape[-dims:],
        each(kernel_size, dims),
        each(kernel_size if stride is None else stride, dims),
        each(padding, dims),
        each(dilation, dims),
        strict=True,
    )
    windows = [sliding_windows(*axis, ceil_mode) for axis in numbers]
    return pooled(lambda part, _: part.max(-1).values, input.double(), windows)


def avg_pool(
    dims: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The sum of each window over the number of elements, or of those of the padded input."""
    windows, counts = [], []
    for size, kernel, step, pad in zip(
        input.shape[-dims:],
        each(kernel_size, dims),
        each(kernel_size if stride is None else stride, dims),
        each(padding, dims),
        strict=True,
    ):
        windows.append(sliding_windows(size, kernel, step, pad, 1, ceil_mode))
        starts = [i * step - pad for i in range(len(windows[-1]))]
        counts.append([min(start + kernel, size + pad) - start for start in starts])
    padded = [math.prod(count) for count in itertools.product(*counts)]

    def mean(part: Tensor, number: int) -> Tensor:
        count = padded[number] if count_include_pad else part.size(-1)
        return part.sum(-1) / (divisor_override or count)

    return pooled(mean, input.double(), windows)


def adaptive_windows_of(dims: int, input: Tensor, output_size: Any) -> list[list[Tensor]]:
    """Those of each dimension, which keeps its size where None is asked for."""
    sizes = zip(input.shape[-dims:], each(output_size, dims), strict=True)
    return [adaptive_windows(size, size if output is None else output) for size, output in sizes]


def adaptive_max_pool(dims: int, input: Tensor, output_size: Any) -> Tensor:
    """The maximum of each window."""
    windows = adaptive_windows_of(dims, input, output_size)
    return pooled(lambda part, _: part.max(-1).values, input.double(), windows)


def adaptive_avg_pool(dims: int, input: Tensor, output_size: Any) -> Tensor:
    """The mean of each window."""
    windows = adaptive_windows_of(dims, input, output_size)
    return pooled(lambda part, _: part.mean(-1), input.double(), windows)


max_pool1d, max_pool2d = partial(max_pool, 1), partial(max_pool, 2)
avg_pool1d, avg_pool2d = partial(avg_pool, 1), partial(avg_pool, 2)
adaptive_max_pool1d, adaptive_max_pool2d = (partial(adaptive_max_pool, dims) for dims in (1, 2))
adaptive_avg_pool1d, adaptive_avg_pool2d = (partial(adaptive_avg_pool, dims) for dims in (1, 2))
