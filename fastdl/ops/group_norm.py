"""group_norm: torch's function and module on fastdl's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as native
from torch import Tensor
from torch.compiler import is_compiling

from fastdl import _C


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""``torch.nn.functional.group_norm``: over each sample's groups of neighbouring channels,
    :math:`y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} w + b`.

    Args:
        input: (N, C, *), any memory layout; the kernel covers float32, float64, bfloat16, float16.
        num_groups: into how many groups the channels are split; must divide C.
        weight, bias: (C), of ``input``'s dtype, or float32 with 16-bit inputs.
        eps: added to the (biased) variance.

    Returns a tensor of ``input``'s shape and dtype, on the CPU channels last if ``input`` is.
    Statistics are float32 (float64 for float64). Errors are torch's. Source: Wu and He,
    arXiv:1803.08494.
    """
    if not is_compiling():
        output = _C.group_norm(input, num_groups, weight, bias, eps)
        if output is not None:
            return output
    return native.group_norm(input, num_groups, weight, bias, eps)


class GroupNorm(torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` on :func:`group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
