"""RMSprop: torch.optim's class with one fused kernel for all tensors of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop as native_rmsprop

from fastdl import _C
from fastdl.ops.optimizer import Lists, MultiTensorStep


class RMSprop(MultiTensorStep, torch.optim.RMSprop):
    r"""``torch.optim.RMSprop`` whose step updates all tensors of a group in one call.

    Constructor, param groups and state_dict are torch's; see its documentation for the arguments.
    With gradient :math:`g`, weight decay :math:`\lambda` and momentum :math:`\mu`:

    .. math::
        g \leftarrow g + \lambda p, \quad
        v \leftarrow \alpha v + (1 - \alpha) g^2, \quad
        b \leftarrow \mu b + \frac{g}{\sqrt{v} + \epsilon}, \quad
        p \leftarrow p - lr \, b

    ``centered`` takes :math:`v - a^2` for :math:`v` under the root, with the average gradient
    :math:`a \leftarrow \alpha a + (1 - \alpha) g`; ``maximize`` negates ``g``. What the kernel
    covers, flags, ``GradScaler`` and ``step(max_norm=...)`` are as in :class:`fastdl.optim.Adam`;
    ``capturable=True`` keeps the step counts on the GPU, for CUDA graphs.

    Source: Hinton, Neural Networks for Machine Learning, lecture 6; centered: Graves,
    arXiv:1308.0850.
    """

    def _gather(self, group: dict[str, Any]) -> tuple[Lists, dict[str, Any]]:
        lists: Lists = [[], [], [], [], [], []]
        params, grads, square_avgs, grad_avgs, momentum_buffers, steps = lists
        has_complex = self._init_group(  # type: ignore[no-untyped-call]
            group, params, grads, square_avgs, momentum_buffers, grad_avgs, steps
        )
        return lists, {"has_complex": has_complex}

    def _reason(self, group: dict[str, Any]) -> str | None:
        if group["capturable"] and not all(p.is_cuda for p in group["params"]):
            return "capturable=True without a GPU"  # which native torch takes as an error
        return None

    def _kernel_step(
        self, group: dict[str, Any], lists: Lists, lr: float, scalars: tuple[Tensor | None, ...]
    ) -> list[int] | None:
        params, grads, square_avgs, grad_avgs, momentum_buffers, steps = lists
        return _C.rmsprop_step(
            params,
            grads,
            square_avgs,
            grad_avgs,
            momentum_buffers,
            steps,
            lr,
            group["alpha"],
            group["weight_decay"],
            group["eps"],
            group["momentum"],
            group["maximize"],
            *scalars,
        )

    def _native_step(self, group: dict[str, Any], lists: Lists, flags: dict[str, Any]) -> None:
        params, grads, square_avgs, grad_avgs, momentum_buffers, steps = lists
        native_rmsprop(
            params,
            grads,
            square_avgs,
            grad_avgs,
            momentum_buffers,
            steps,
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            centered=group["centered"],
            foreach=group["foreach"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            capturable=group["capturable"],
            **flags,
        )
