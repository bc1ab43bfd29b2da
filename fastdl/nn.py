"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "LayerNorm",
    "LogSoftmax",
    "RMSNorm",
    "Softmax",
    "Softmin",
]
