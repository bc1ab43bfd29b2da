"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

import torch

from fastdl.ops.cross_entropy import CrossEntropyLoss, NLLLoss
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "CrossEntropyLoss",
    "LayerNorm",
    "LogSoftmax",
    "NLLLoss",
    "RMSNorm",
    "Softmax",
    "Softmin",
]

if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # from torch 2.13 on
    from fastdl.ops.linear_cross_entropy import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss"]
