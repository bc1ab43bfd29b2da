"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.layer_norm import LayerNorm, RMSNorm
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
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "LayerNorm",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "RMSNorm",
    "Softmax",
    "Softmin",
]
