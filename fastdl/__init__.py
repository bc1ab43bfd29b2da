"""fastdl: hand-written kernels that make existing PyTorch models faster.

``convert(model)`` makes a model use them; ``functional``, ``nn`` and ``optim`` have torch's names.
"""

import torch  # loads the libraries that _C is linked against

from fastdl import _build_info

_build_info.check_torch(torch.__version__, torch.version.cuda)

# ruff: noqa: E402  (a torch that does not fit is to be named before _C fails to load)
from fastdl import functional, masks, nn, optim
from fastdl._C import cpu_isa
from fastdl.convert import convert, report, reset_hand_overs, revert, strict
from fastdl.memory import keep_memory
from fastdl.ops.conv import allow_winograd

__version__ = _build_info.VERSION

__all__ = [
    "__version__",
    "allow_winograd",
    "convert",
    "cpu_isa",
    "functional",
    "keep_memory",
    "masks",
    "nn",
    "optim",
    "report",
    "reset_hand_overs",
    "revert",
    "strict",
]
