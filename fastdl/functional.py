"""Index of functions, with the names and signatures of ``torch.nn.functional``."""

from fastdl.ops.activation import elu, gelu, leaky_relu, relu, sigmoid, silu, tanh
from fastdl.ops.attention import scaled_dot_product_attention
from fastdl.ops.batch_norm import batch_norm, batch_norm_relu
from fastdl.ops.conv import conv1d, conv2d
from fastdl.ops.conv_fused import conv1d_add, conv1d_relu, conv2d_add, conv2d_relu
from fastdl.ops.cross_entropy import cross_entropy, nll_loss
from fastdl.ops.dropout import dropout
from fastdl.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastdl.ops.elementwise_loss import (
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from fastdl.ops.embedding import embedding
from fastdl.ops.group_norm import group_norm
from fastdl.ops.layer_norm import layer_norm, rms_norm
from fastdl.ops.linear_cross_entropy import linear_cross_entropy
from fastdl.ops.multi_head_attention import multi_head_attention_forward
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
from fastdl.ops.varlen_attention import varlen_attn

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv1d_add",
    "conv1d_relu",
    "conv2d",
    "conv2d_add",
    "conv2d_relu",
    "cross_entropy",
    "dropout",
    "dropout_add_layer_norm",
    "elu",
    "embedding",
    "gelu",
    "group_norm",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear_cross_entropy",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "mse_loss",
    "multi_head_attention_forward",
    "nll_loss",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmin",
    "tanh",
    "varlen_attn",
]
