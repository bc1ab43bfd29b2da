"""The step that all optimizers share: groups, GradScaler, clipping, hand-overs to native torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.optim.optimizer import _use_grad_for_differentiable

from fastdl import _C
from fastdl.ops.clip_grad import norm_and_coefficient

# Its name differs between the versions of torch.
_check_graph_capture = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    torch.optim.Optimizer._cuda_graph_capture_health_check,
)

Lists = list[list[Tensor]]


def number(value: float | Tensor) -> float:
    """The value, be it in a tensor or not."""
    return value.item() if isinstance(value, Tensor) else value


def is_on_gpu(value: float | Tensor) -> bool:
    """Whether the value is a tensor on a GPU."""
    return isinstance(value, Tensor) and value.is_cuda


class MultiTensorStep(torch.optim.Optimizer):
    """Base of the optimizers: one call of a kernel updates all tensors of a group."""

    # Tells torch.amp.GradScaler to leave unscaling and skipping to step().
    _step_supports_amp_scaling = True

    grad_norm: Tensor | None = None
    """The total norm that the last ``step(max_norm=...)`` found, before clipping."""

    @_use_grad_for_differentiable
    def step(self, closure: Any = None, *, max_norm: float | None = None) -> Any:
        r"""Updates all parameters that have a gradient; returns the closure's loss, if any.

        With ``max_norm`` the step clips: every gradient counts as
        :math:`g \cdot \min(1, \frac{max\_norm}{\lVert g \rVert_2 + 10^{-6}})` with the norm over
        the gradients of all groups, as after ``torch.nn.utils.clip_grad_norm_(params, max_norm)``.
        One pass finds the norm, and the step's own pass applies the factor: ``.grad`` itself stays
        unclipped. The norm is ``grad_norm`` afterwards, a tensor that no host waited for. With
        ``GradScaler``, ``scaler.step(optimizer, max_norm=1.0)`` clips the unscaled gradients.
        """
        if "capturable" in self.defaults:
            _check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip = None if max_norm is None else self._clip_coefficient(max_norm)
        for group in self.param_groups:
            self._step_group(group, clip)
        return loss

    def _clip_coefficient(self, max_norm: float) -> Tensor:
        if any(group["differentiable"] for group in self.param_groups):
            raise ValueError(
                f"max_norm={max_norm} cannot be used with differentiable=True: "
                "clip the gradients before the step"
            )
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        self.grad_norm, coefficient = norm_and_coefficient(grads, max_norm, grad_scale)
        return coefficient

    def _step_group(self, group: dict[str, Any], clip: Tensor | None) -> None:
        lists, flags = self._gather(group)
        left = self._covered_step(group, lists, clip)
        if left is not None:
            if not left:
                return
            lists = [[all_[i] for i in left] if all_ else [] for all_ in lists]
        self._left_step(group, lists, flags, clip)

    def _covered_step(
        self, group: dict[str, Any], lists: Lists, clip: Tensor | None
    ) -> list[int] | None:
        """The kernel's step: indices of tensors it does not cover, or None for all of them."""
        if is_compiling():
            return None
        reason = "differentiable=True" if group["differentiable"] else self._reason(group)
        if reason is not None:
            _C.hand_over(type(self).__name__, reason)
            return None
        lr = group["lr"]
        scalars = (
            lr if is_on_gpu(lr) else None,
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
            clip,
        )
        return self._kernel_step(group, lists, 0.0 if is_on_gpu(lr) else number(lr), scalars)

    def _left_step(
        self, group: dict[str, Any], lists: Lists, flags: dict[str, Any], clip: Tensor | None
    ) -> None:
        """Native torch's step for what no kernel covers."""
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not group.get("fused") or clip is not None:
            # Of the native steps only the fused one skips and unscales by itself.
            if found_inf is not None and found_inf.item():
                return
            if grad_scale is not None:
                torch._foreach_div_(lists[1], grad_scale)
            grad_scale = found_inf = None
        if clip is not None:
            lists[1] = [grad * clip.to(grad.device) for grad in lists[1]]
        if "fused" in group:
            flags = {
                "fused": group["fused"],
                "grad_scale": grad_scale,
                "found_inf": found_inf,
                **flags,
            }
        self._native_step(group, lists, flags)

    def _gather(self, group: dict[str, Any]) -> tuple[Lists, dict[str, Any]]:
        """Lists of parameters, gradients, states and steps that torch's ``_init_group`` fills.

        A state that the group does without is an empty list. With them: what torch's own function
        of the step is told of the tensors.
        """
        raise NotImplementedError

    def _reason(self, group: dict[str, Any]) -> str | None:
        """Why no kernel covers the options of this group, or None."""
        return None

    def _kernel_step(
        self, group: dict[str, Any], lists: Lists, lr: float, scalars: tuple[Tensor | None, ...]
    ) -> list[int] | None:
        """The kernel's step: indices of tensors that it does not cover."""
        raise NotImplementedError

    def _native_step(self, group: dict[str, Any], lists: Lists, flags: dict[str, Any]) -> None:
        """torch's own function of this step."""
        raise NotImplementedError
