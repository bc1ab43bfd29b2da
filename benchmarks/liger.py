"""The Triton kernels of Liger-Kernel as candidates on GPUs, where that package is installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TensorFunction = Callable[..., Tensor]


def softmax() -> TensorFunction:
    """Over the last dimension."""
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    apply: TensorFunction = LigerSoftmaxFunction.apply
    return apply


def layer_norm(eps: float) -> TensorFunction:
    """Of (input, weight, bias)."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return lambda values, weight, bias: LigerLayerNormFunction.apply(values, weight, bias, eps)


def rms_norm(eps: float) -> TensorFunction:
    """Of (input, weight), with torch's rounding; not in place, since the gradient is used again."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda values, weight: LigerRMSNormFunction.apply(
        values, weight, eps, 0.0, "gemma", False
    )


def if_installed(make: Callable[[], TensorFunction], dtype: torch.dtype) -> TensorFunction | None:
    """The function; None where the package is not, or for float64, which it does not have."""
    if dtype == torch.float64:
        return None
    try:
        return make()
    except Exception:  # noqa: BLE001 (whatever keeps it from being imported)
        return None
