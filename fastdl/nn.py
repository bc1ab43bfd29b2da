"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastdl.ops.group_norm import GroupNorm
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.sequential import Sequential
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "LayerNorm",
    "LogSoftmax",
    "RMSNorm",
    "Sequential",
    "Softmax",
    "Softmin",
]
