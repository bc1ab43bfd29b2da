"""Adam and AdamW: torch.optim's classes with one fused kernel for all tensors of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as native_adam

from fastdl import _C
from fastdl.ops.optimizer import Lists, MultiTensorStep, is_on_gpu, number


class Adam(MultiTensorStep, torch.optim.Adam):
    r"""``torch.optim.Adam`` whose step updates all tensors of a group in one call.

    Constructor, param groups and state_dict are torch's; see its documentation for the arguments.
    With gradient :math:`g`, step :math:`t` and weight decay :math:`\lambda`:

    .. math::
        g \leftarrow g + \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - \frac{lr}{1 - \beta_1^t} \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    ``amsgrad`` takes the largest ``v`` so far, ``maximize`` negates ``g``. The kernel covers dense
    float32, float64, bfloat16 and float16 parameters on CPU and CUDA, each with gradient and state
    of its own dtype and layout, and computes 16-bit ones in float32. It is used whatever
    ``foreach``, ``fused`` and ``capturable`` say; all else (``differentiable``, complex or sparse
    gradients, other devices, betas on a GPU, ``torch.compile``) goes to native torch.
    ``GradScaler`` hands its scale to the step, which unscales and skips by itself.
    ``step(max_norm=1.0)`` clips the gradients' norm in the same pass, see :meth:`step`.

    On CUDA ``capturable=True`` or ``fused=True`` keep the step counts on the GPU: the step then
    waits for nothing there (a ``lr`` tensor and the scaler's results are read by the kernel), and
    with ``capturable`` it can be part of a CUDA graph.

    Source: Kingma and Ba, arXiv:1412.6980; amsgrad: Reddi et al., arXiv:1904.09237.
    """

    def _gather(self, group: dict[str, Any]) -> tuple[Lists, dict[str, Any]]:
        lists: Lists = [[], [], [], [], [], []]
        has_complex = self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        return lists, {"has_complex": has_complex}

    def _reason(self, group: dict[str, Any]) -> str | None:
        return "betas on a GPU" if any(is_on_gpu(beta) for beta in group["betas"]) else None

    def _kernel_step(
        self, group: dict[str, Any], lists: Lists, lr: float, scalars: tuple[Tensor | None, ...]
    ) -> list[int] | None:
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
        beta1, beta2 = group["betas"]
        return _C.adam_step(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            lr,
            number(beta1),
            number(beta2),
            group["weight_decay"],
            group["eps"],
            group["maximize"],
            group["decoupled_weight_decay"],
            *scalars,
        )

    def _native_step(self, group: dict[str, Any], lists: Lists, flags: dict[str, Any]) -> None:
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
        beta1, beta2 = group["betas"]
        native_adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            **flags,
        )


class AdamW(Adam, torch.optim.AdamW):
    r"""``torch.optim.AdamW``: :class:`Adam` with decoupled weight decay.

    The parameter shrinks by :math:`lr \lambda` of itself, :math:`p \leftarrow (1 - lr \lambda) p`,
    instead of :math:`\lambda p` joining the gradient.

    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """
