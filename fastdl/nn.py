"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

import torch

from fastdl.ops.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from fastdl.ops.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastdl.ops.conv import Conv1d, Conv2d
from fastdl.ops.cross_entropy import CrossEntropyLoss, NLLLoss
from fastdl.ops.dropout import Dropout
from fastdl.ops.elementwise_loss import BCEWithLogitsLoss, HuberLoss, L1Loss, MSELoss, SmoothL1Loss
from fastdl.ops.embedding import Embedding
from fastdl.ops.group_norm import GroupNorm
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.multi_head_attention import MultiheadAttention
from fastdl.ops.pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from fastdl.ops.sequential import Sequential
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "HuberLoss",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "MultiheadAttention",
    "NLLLoss",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softmin",
    "Tanh",
]

if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # from torch 2.13 on
    from fastdl.ops.linear_cross_entropy import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss"]
