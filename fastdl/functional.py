"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.activation import elu, gelu, leaky_relu, relu, sigmoid, silu, tanh
from fastdl.ops.dropout import dropout
from fastdl.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "dropout",
    "dropout_add_layer_norm",
    "elu",
    "gelu",
    "layer_norm",
    "leaky_relu",
    "log_softmax",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "tanh",
]
