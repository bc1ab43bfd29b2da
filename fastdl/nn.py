"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from fastdl.ops.dropout import Dropout
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "ELU",
    "GELU",
    "Dropout",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmin",
    "Tanh",
]
