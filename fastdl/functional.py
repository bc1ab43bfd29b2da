"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.batch_norm import batch_norm, batch_norm_relu
from fastdl.ops.group_norm import group_norm
from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "batch_norm",
    "batch_norm_relu",
    "group_norm",
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "softmax",
    "softmin",
]
