"""batch_norm, alone and fused with what often follows it: torch's function and modules."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling
from torch.fx import Proxy, Tracer

from fastdl import _C


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
    r"""``torch.nn.functional.batch_norm``: over the batch and space, for each channel,
    :math:`y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} w + b`.

    Args:
        input: (N, C, *), any memory layout; the kernel covers float32, float64, bfloat16, float16.
        running_mean, running_var: (C); in training moved by ``momentum`` towards the mean and the
            unbiased variance of ``input``, in place (or None), else used instead of these.
        weight, bias: (C). All four of ``input``'s dtype, or float32 with 16-bit inputs.
        training: whether mean and (biased) variance are those of ``input``.
        eps: added to the variance.

    Returns a tensor of ``input``'s shape and dtype, channels last if ``input`` is. Statistics are
    float32 (float64 for float64). Errors are torch's. Source: Ioffe and Szegedy, arXiv:1502.03167.
    """
    if not is_compiling() and isinstance(training, bool):
        output = _C.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
        if output is not None:
            return output
    return native.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """``relu(batch_norm(input, ..) + residual)`` in one pass, and its gradients in one.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps: as in
            :func:`batch_norm`.
        residual: of ``input``'s shape and dtype, added before the ReLU; None for none.

    Returns, types and errors as in :func:`batch_norm`. The sum is rounded once, where 16-bit types
    are rounded after each step otherwise.
    """
    if not is_compiling() and isinstance(training, bool):
        output = _C.batch_norm_relu(
            input, running_mean, running_var, weight, bias, training, momentum, eps, residual
        )
        if output is not None:
            return output
    output = native.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )
    return native.relu(output if residual is None else output + residual)


def functional_arguments(
    module: torch.nn.modules.batchnorm._BatchNorm, input: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, bool, float, float]:
    """What torch's module passes to the function behind its input; counts the batch."""
    module._check_input_dim(input)  # type: ignore[no-untyped-call]
    factor = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # the cumulative average
            factor = 1.0 / float(module.num_batches_tracked)
    running_mean, running_var = module.running_mean, module.running_var
    training = module.training or (running_mean is None and running_var is None)
    if module.training and not module.track_running_stats:
        running_mean = running_var = None
    return (running_mean, running_var, module.weight, module.bias, training, factor, module.eps)


def run(module: torch.nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """What all of the modules do."""
    if isinstance(input, Proxy) and isinstance(input.tracer, Tracer):
        # torch.fx records modules of torch.nn whole. So must this one be, whose count would be made
        # while tracing; but for the root of a graph, which is refused as torch's.
        path = input.tracer.path_of_module(module)
        if path:
            return input.tracer.create_proxy("call_module", path, (input,), {})
    return batch_norm(input, *functional_arguments(module, input))


class BatchNorm1d(torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` on :func:`batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return run(self, input)


class BatchNorm2d(torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on :func:`batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return run(self, input)


class BatchNorm3d(torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` on :func:`batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return run(self, input)
