"""Index of optimizers: each subclasses the ``torch.optim`` class of the same name."""

from fastdl.ops.adagrad import Adagrad
from fastdl.ops.adam import Adam, AdamW
from fastdl.ops.clip_grad import clip_grad_norm_
from fastdl.ops.rmsprop import RMSprop
from fastdl.ops.sgd import SGD
from fastdl.optim import lr_scheduler

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "RMSprop",
    "clip_grad_norm_",
    "lr_scheduler",
]
