"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from fastdl.ops.dropout import Dropout
from fastdl.ops.elementwise_loss import BCEWithLogitsLoss, HuberLoss, L1Loss, MSELoss, SmoothL1Loss
from fastdl.ops.embedding import Embedding
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "ELU",
    "GELU",
    "BCEWithLogitsLoss",
    "Dropout",
    "Embedding",
    "HuberLoss",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MSELoss",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softmin",
    "Tanh",
]
