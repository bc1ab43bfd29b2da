"""SGD: torch.optim's class with one fused kernel for all tensors of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as native_sgd

from fastdl import _C
from fastdl.ops.optimizer import Lists, MultiTensorStep


class SGD(MultiTensorStep, torch.optim.SGD):
    r"""``torch.optim.SGD`` whose step updates all tensors of a group in one call.

    Constructor, param groups and state_dict are torch's; see its documentation for the arguments.
    With gradient :math:`g`, weight decay :math:`\lambda`, momentum :math:`\mu` and dampening
    :math:`\tau`:

    .. math::
        g \leftarrow g + \lambda p, \quad
        b \leftarrow \mu b + (1 - \tau) g, \quad
        p \leftarrow p - lr \, b

    The first ``b`` is ``g``; ``nesterov`` takes :math:`g + \mu b` for the last :math:`b`,
    ``maximize`` negates ``g``. What the kernel covers, flags, ``GradScaler`` and
    ``step(max_norm=...)`` are as in :class:`fastdl.optim.Adam`. Sparse gradients and a
    ``weight_decay`` in a tensor go to native torch. The first step with momentum under
    ``GradScaler`` asks the scaler whether gradients overflowed, which on CUDA waits for the GPU.

    Source: Sutskever, Martens, Dahl and Hinton, On the importance of initialization and momentum
    in deep learning, ICML 2013.
    """

    def _gather(self, group: dict[str, Any]) -> tuple[Lists, dict[str, Any]]:
        # params, grads, momentum buffers: none without momentum, None before the first step
        lists: Lists = [[], [], []]
        has_sparse_grad = self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        return lists, {"has_sparse_grad": has_sparse_grad}

    def _kernel_step(
        self, group: dict[str, Any], lists: Lists, lr: float, scalars: tuple[Tensor | None, ...]
    ) -> list[int] | None:
        new = [i for i, buffer in enumerate(lists[2]) if buffer is None]
        if not new:
            return self._kernel_call(group, lists, lr, scalars, first=False)
        found_inf = scalars[2]
        if found_inf is not None and found_inf.item():
            return []  # no buffer may come to be in a step that is none
        started = [i for i, buffer in enumerate(lists[2]) if buffer is not None]
        left: list[int] = []
        for indices, first in ((started, False), (new, True)):
            some = [[all_[i] for i in indices] for all_ in lists]
            if first:
                some[2] = [torch.empty_like(param) for param in some[0]]
            rest = self._kernel_call(group, some, lr, scalars, first)
            if rest is None:
                rest = list(range(len(indices)))
            left += [indices[i] for i in rest]
            if first:
                for i in set(range(len(indices))).difference(rest):
                    self.state[some[0][i]]["momentum_buffer"] = some[2][i]
        return sorted(left)

    def _kernel_call(
        self,
        group: dict[str, Any],
        lists: Lists,
        lr: float,
        scalars: tuple[Tensor | None, ...],
        first: bool,
    ) -> list[int] | None:
        if not lists[0]:
            return []
        params, grads, momentum_buffers = lists
        return _C.sgd_step(
            params,
            grads,
            momentum_buffers,
            lr,
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            first,
            *scalars,
        )

    def _native_step(self, group: dict[str, Any], lists: Lists, flags: dict[str, Any]) -> None:
        params, grads = lists[:2]
        momentum_buffers: list[Tensor | None] = [*lists[2]]
        native_sgd(
            params,
            grads,
            momentum_buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            **flags,
        )
        if group["momentum"] != 0:
            for param, buffer in zip(params, momentum_buffers, strict=True):
                self.state[param]["momentum_buffer"] = buffer
