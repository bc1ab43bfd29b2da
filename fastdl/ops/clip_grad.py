"""Gradient clipping by the total norm: one pass over all gradients for it, one to scale them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import GeneratorType

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils import clip_grad_norm_ as native_clip_grad_norm_

from fastdl import _C


def norm_and_coefficient(
    grads: Sequence[Tensor], max_norm: float, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The total 2-norm of ``grads / grad_scale``, and min(1, max_norm / (norm + 1e-6)).

    Neither is waited for; both are tensors without dimensions on the gradients' device.
    """
    max_norm = float(max_norm)
    if grads and not is_compiling():
        found = _C.grad_norm(list(grads), max_norm, grad_scale)
        if found is not None:
            return found
    total = torch.tensor(0.0)
    if grads:
        norms = [torch.linalg.vector_norm(grad) for grad in grads]
        total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    if grad_scale is not None:
        total = total / grad_scale.to(total.device)
    return total, (max_norm / (total + 1e-6)).clamp(max=1.0)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    r"""``torch.nn.utils.clip_grad_norm_``: scales all gradients together, in place.

    .. math::
        g \leftarrow g \cdot \min\left(1, \frac{max\_norm}{\lVert g \rVert_2 + 10^{-6}}\right)

    with the norm over all elements of all gradients. It is returned, a tensor without dimensions on
    the gradients' device. NaN and infinity come through as with torch: a gradient that is NaN makes
    all NaN, one that is infinite makes the others zero; ``error_if_nonfinite`` raises instead.

    The kernel covers dense float32, float64, bfloat16 and float16 gradients of one device, CPU or
    CUDA. It adds the squares in float64, in an order that does not depend on the number of threads,
    and reads every gradient once; where nothing is to be clipped, none is written. Other norms
    (``norm_type``), gradients on several devices and all else go to native torch, whatever
    ``foreach`` says. ``optimizer.step(max_norm=...)`` of fastdl's optimizers clips in the pass of
    the step instead.

    Source: Pascanu, Mikolov and Bengio, arXiv:1211.5063.
    """
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [parameter.grad for parameter in listed if parameter.grad is not None]
    # torch warns of an empty generator, and returns a zero for no gradients.
    given = parameters if isinstance(parameters, GeneratorType) and not listed else listed
    if grads and not is_compiling():
        if float(norm_type) != 2.0:
            _C.hand_over("clip_grad_norm_", "a norm other than 2")
        elif (found := _C.grad_norm(grads, float(max_norm), None)) is not None:
            total, coefficient = found
            if not error_if_nonfinite or total.isfinite():
                _C.scale_grads(grads, coefficient)
                return total
    return native_clip_grad_norm_(given, max_norm, norm_type, error_if_nonfinite, foreach)
