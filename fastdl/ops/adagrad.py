"""Adagrad: torch.optim's class with one fused kernel for all tensors of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad as native_adagrad

from fastdl import _C
from fastdl.ops.optimizer import Lists, MultiTensorStep


class Adagrad(MultiTensorStep, torch.optim.Adagrad):
    r"""``torch.optim.Adagrad`` whose step updates all tensors of a group in one call.

    Constructor, param groups and state_dict are torch's; see its documentation for the arguments.
    With gradient :math:`g`, step :math:`t`, weight decay :math:`\lambda` and ``lr_decay``
    :math:`\eta`:

    .. math::
        g \leftarrow g + \lambda p, \quad
        s \leftarrow s + g^2, \quad
        p \leftarrow p - \frac{lr}{1 + (t - 1) \eta} \frac{g}{\sqrt{s} + \epsilon}

    The first ``s`` is ``initial_accumulator_value``; ``maximize`` negates ``g``. What the kernel
    covers, flags, ``GradScaler`` and ``step(max_norm=...)`` are as in :class:`fastdl.optim.Adam`;
    ``fused=True`` keeps the step counts on the GPU. Sparse gradients go to native torch.

    Source: Duchi, Hazan and Singer, Journal of Machine Learning Research 12 (2011) 2121-2159.
    """

    def _gather(self, group: dict[str, Any]) -> tuple[Lists, dict[str, Any]]:
        lists: Lists = [[], [], [], []]
        init_group = self._init_group
        has_sparse_grad, has_complex = init_group(group, *lists)  # type: ignore[no-untyped-call]
        return lists, {"has_sparse_grad": has_sparse_grad, "has_complex": has_complex}

    def _kernel_step(
        self, group: dict[str, Any], lists: Lists, lr: float, scalars: tuple[Tensor | None, ...]
    ) -> list[int] | None:
        params, grads, sums, steps = lists
        return _C.adagrad_step(
            params,
            grads,
            sums,
            steps,
            lr,
            group["lr_decay"],
            group["weight_decay"],
            group["eps"],
            group["maximize"],
            *scalars,
        )

    def _native_step(self, group: dict[str, Any], lists: Lists, flags: dict[str, Any]) -> None:
        params, grads, sums, steps = lists
        native_adagrad(
            params,
            grads,
            sums,
            steps,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            foreach=group["foreach"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            **flags,
        )
