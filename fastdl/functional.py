"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    max_pool1d,
    max_pool2d,
)
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "layer_norm",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "rms_norm",
    "softmax",
    "softmin",
]
