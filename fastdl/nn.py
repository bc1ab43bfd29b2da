"""Index of modules: each subclasses the ``torch.nn`` class of the same name."""

from fastdl.ops.elementwise_loss import BCEWithLogitsLoss, HuberLoss, L1Loss, MSELoss, SmoothL1Loss
from fastdl.ops.embedding import Embedding
from fastdl.ops.layer_norm import LayerNorm, RMSNorm
from fastdl.ops.softmax import LogSoftmax, Softmax, Softmin

__all__ = [
    "BCEWithLogitsLoss",
    "Embedding",
    "HuberLoss",
    "L1Loss",
    "LayerNorm",
    "LogSoftmax",
    "MSELoss",
    "RMSNorm",
    "SmoothL1Loss",
    "Softmax",
    "Softmin",
]
