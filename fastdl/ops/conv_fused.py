"""Convolution fused with what often follows it: a residual added, ReLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fastdl.ops.conv import Size, convolution


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """``relu(conv2d(input, ..) + residual)`` in one pass; differentiable.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in :func:`conv2d`.
        residual: of the output's shape and dtype, added before the ReLU; None for none.

    Returns and errors as in :func:`conv2d`. The sum is rounded once, where 16-bit types are rounded
    after each step otherwise.
    """
    return convolution(2, input, weight, bias, stride, padding, dilation, groups, residual, True)


def conv1d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`conv2d_relu` in one dimension."""
    return convolution(1, input, weight, bias, stride, padding, dilation, groups, residual, True)


def conv2d_add(
    input: Tensor,
    weight: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``conv2d(input, ..) + residual`` in one pass; see :func:`conv2d_relu`."""
    return convolution(2, input, weight, bias, stride, padding, dilation, groups, residual)


def conv1d_add(
    input: Tensor,
    weight: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`conv2d_add` in one dimension."""
    return convolution(1, input, weight, bias, stride, padding, dilation, groups, residual)


class FoldedConv(torch.nn.Module):
    r"""A convolution and what follows it in a model in evaluation, in one pass: a batch norm,
    folded into the weight :math:`w \gamma / \sqrt{\mathrm{Var} + \epsilon}`, a residual, ReLU.

    Made by ``fastdl.convert(model, inference=True)``. Its weight takes no gradient, and it cannot
    be set to training.
    """

    def __init__(self, conv: _ConvNd, norm: _BatchNorm | None, adds: bool, relu: bool) -> None:
        super().__init__()
        weight, bias = conv.weight.detach().double(), conv.bias
        shift = None if bias is None else bias.detach().double()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.detach().double()
            mean = -norm.running_mean.double()
            shift = (mean if shift is None else shift + mean) * scale
            if norm.bias is not None:
                shift = shift + norm.bias.detach().double()
            weight = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
        dtype = conv.weight.dtype
        self.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        folded = None if shift is None else shift.to(dtype)
        self.bias = None if folded is None else torch.nn.Parameter(folded, requires_grad=False)
        self.dims = weight.dim() - 2
        self.sizes = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.relu = relu
        parts = [type(conv).__name__, *([] if norm is None else [type(norm).__name__])]
        self.parts = " + ".join([*parts, *["add"] * adds, *["ReLU"] * relu])
        self.eval()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return convolution(
            self.dims, input, self.weight, self.bias, *self.sizes, residual, self.relu
        )

    def train(self, mode: bool = True) -> FoldedConv:
        if mode:
            raise RuntimeError(
                f"{self.parts} was folded for inference: train the model that it was made of"
            )
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.parts}, weight={tuple(self.weight.shape)}"
