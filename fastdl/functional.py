"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.cross_entropy import cross_entropy, nll_loss
from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.linear_cross_entropy import linear_cross_entropy
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "cross_entropy",
    "layer_norm",
    "linear_cross_entropy",
    "log_softmax",
    "nll_loss",
    "rms_norm",
    "softmax",
    "softmin",
]
