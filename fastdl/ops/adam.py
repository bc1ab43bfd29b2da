"""Adam and AdamW: torch.optim's classes with one fused kernel for all tensors of a group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.optim.adam import adam as native_adam
from torch.optim.optimizer import _use_grad_for_differentiable

from fastdl import _C

# Its name differs between the versions of torch.
_check_graph_capture = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    torch.optim.Optimizer._cuda_graph_capture_health_check,
)


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _is_on_gpu(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


class _Lists(NamedTuple):
    """The tensors of a group, as torch's own ``_init_group`` fills them."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]  # empty without amsgrad
    steps: list[Tensor]


class Adam(torch.optim.Adam):
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

    On CUDA ``capturable=True`` or ``fused=True`` keep the step counts on the GPU: the step then
    waits for nothing there (a ``lr`` tensor and the scaler's results are read by the kernel), and
    with ``capturable`` it can be part of a CUDA graph.

    Source: Kingma and Ba, arXiv:1412.6980; amsgrad: Reddi et al., arXiv:1904.09237.
    """

    # Tells torch.amp.GradScaler to leave unscaling and skipping to step().
    _step_supports_amp_scaling = True

    @_use_grad_for_differentiable
    def step(self, closure: Any = None) -> Any:
        """Updates all parameters that have a gradient; returns the closure's loss, if any."""
        _check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        lists = _Lists([], [], [], [], [], [])
        has_complex = self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        beta1, beta2 = group["betas"]
        lr = group["lr"]
        if is_compiling():
            pass
        elif group["differentiable"]:
            _C.hand_over(type(self).__name__, "differentiable=True")
        elif _is_on_gpu(beta1) or _is_on_gpu(beta2):
            _C.hand_over(type(self).__name__, "betas on a GPU")
        else:
            left = _C.adam_step(
                *lists,
                0.0 if _is_on_gpu(lr) else _number(lr),
                _number(beta1),
                _number(beta2),
                group["weight_decay"],
                group["eps"],
                group["maximize"],
                group["decoupled_weight_decay"],
                lr if _is_on_gpu(lr) else None,
                grad_scale,
                found_inf,
                None,
            )
            if left is not None:
                if not left:
                    return
                lists = _Lists(*([all_[i] for i in left] if all_ else [] for all_ in lists))
        if not group["fused"]:
            # Of the native steps only the fused one skips and unscales by itself.
            if found_inf is not None and found_inf.item():
                return
            if grad_scale is not None:
                torch._foreach_div_(lists.grads, grad_scale)
            grad_scale = found_inf = None
        native_adam(
            *lists,
            amsgrad=group["amsgrad"],
            has_complex=has_complex,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            grad_scale=grad_scale,
            found_inf=found_inf,
            decoupled_weight_decay=group["decoupled_weight_decay"],
        )


class AdamW(Adam, torch.optim.AdamW):
    r"""``torch.optim.AdamW``: :class:`Adam` with decoupled weight decay.

    The parameter shrinks by :math:`lr \lambda` of itself, :math:`p \leftarrow (1 - lr \lambda) p`,
    instead of :math:`\lambda p` joining the gradient.

    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """
