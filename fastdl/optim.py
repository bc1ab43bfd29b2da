"""Index of optimizers: each subclasses the ``torch.optim`` class of the same name."""

from fastdl.ops.adam import Adam, AdamW

__all__ = [
    "Adam",
    "AdamW",
]
