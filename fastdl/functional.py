"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "softmax",
    "softmin",
]
