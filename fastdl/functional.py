"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.elementwise_loss import (
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from fastdl.ops.embedding import embedding
from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "binary_cross_entropy_with_logits",
    "embedding",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "log_softmax",
    "mse_loss",
    "rms_norm",
    "smooth_l1_loss",
    "softmax",
    "softmin",
]
