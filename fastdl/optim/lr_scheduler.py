r"""Learning rate schedules that ``torch.optim.lr_scheduler`` lacks: warm-up, then decay.

All are ``torch.optim.lr_scheduler.LRScheduler``: call ``step()`` after every step of the optimizer,
any optimizer of torch or fastdl. Below :math:`n` is the number of the optimizer's step, 1 for the
first; the schedule has taken :math:`n - 1` steps then (its ``last_epoch``).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["InverseSquareRootLR", "NoamLR", "WarmupCosineLR", "WarmupLinearLR"]


def _check_steps(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, but is {value}")
    return value


def _check_number(name: str, value: float, lowest: float, highest: float = math.inf) -> float:
    if not lowest <= value <= highest or not math.isfinite(value):
        limits = f"between {lowest} and {highest}" if highest < math.inf else f"at least {lowest}"
        raise ValueError(f"{name} must be {limits}, but is {value}")
    return value


class _ClosedFormLR(LRScheduler):
    """A schedule whose rates follow from the number of the step alone."""

    def _factor(self, step: int) -> float:
        """What the initial rates are multiplied by in the optimizer's step of this number."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The rates of all groups for the next step of the optimizer."""
        factor = self._factor(self.last_epoch + 1)
        return [base_lr * factor for base_lr in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return self.get_lr()


class InverseSquareRootLR(_ClosedFormLR):
    r"""Linear warm-up to the optimizer's ``lr``, then decay with the inverse square root.

    .. math::
        lr_n = lr \cdot \min\left(\frac{n}{w}, \sqrt{\frac{w}{n}}\right), \quad
        w = warmup\_steps

    This is :class:`NoamLR` written with its highest rate, which step :math:`w` has.

    Args:
        optimizer: whose rates are set.
        warmup_steps: at least 1.
        last_epoch: steps taken before, -1 for none.

    Source: Vaswani et al., arXiv:1706.03762, section 5.3.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, last_epoch: int = -1) -> None:
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 1)
        super().__init__(optimizer, last_epoch)

    def _factor(self, step: int) -> float:
        return min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))


class NoamLR(_ClosedFormLR):
    r"""The schedule of the Transformer. The optimizer's own ``lr`` has no effect.

    .. math::
        lr_n = factor \cdot d\_model^{-0.5} \cdot \min(n^{-0.5}, n \cdot warmup\_steps^{-1.5})

    Args:
        optimizer: whose rates are set.
        d_model: width of the model, at least 1.
        warmup_steps: at least 1; this step has the highest rate,
            ``factor / sqrt(d_model * warmup_steps)``.
        factor: not negative.
        last_epoch: steps taken before, -1 for none.

    Source: Vaswani et al., arXiv:1706.03762, section 5.3 (d_model 512, warmup_steps 4000).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        d_model: int,
        warmup_steps: int,
        factor: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.d_model = _check_steps("d_model", d_model, 1)
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 1)
        self.factor = _check_number("factor", factor, 0.0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, step: int) -> float:
        decay = min(1 / math.sqrt(step), step / math.sqrt(self.warmup_steps) ** 3)
        return self.factor / math.sqrt(self.d_model) * decay

    def get_lr(self) -> list[float | Tensor]:
        """The rate of all groups for the next step of the optimizer."""
        return [self._factor(self.last_epoch + 1)] * len(self.base_lrs)


class _WarmupDecayLR(_ClosedFormLR):
    """Linear warm-up, then decay to a last rate that stays."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int,
        min_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = _check_steps("warmup_steps", warmup_steps, 0)
        self.total_steps = _check_steps("total_steps", total_steps, 1)
        if total_steps <= warmup_steps:
            raise ValueError(
                f"total_steps must be more than warmup_steps={warmup_steps}, but is {total_steps}"
            )
        self.min_ratio = _check_number("min_ratio", min_ratio, 0.0, 1.0)
        super().__init__(optimizer, last_epoch)

    def _decay(self, progress: float) -> float:
        """From 1 to 0 while `progress` goes from 0 to 1."""
        raise NotImplementedError

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_ratio + (1 - self.min_ratio) * self._decay(min(progress, 1.0))


class WarmupCosineLR(_WarmupDecayLR):
    r"""Linear warm-up to the optimizer's ``lr``, then half a cosine down to ``min_ratio`` of it.

    .. math::
        lr_n = lr \cdot \begin{cases}
            n / w & n < w \\
            r + (1 - r) \frac{1 + \cos(\pi x)}{2} & n \ge w
        \end{cases}
        \quad x = \min\left(\frac{n - w}{T - w}, 1\right), \;
        w = warmup\_steps, \; T = total\_steps, \; r = min\_ratio

    Args:
        optimizer: whose rates are set.
        warmup_steps: 0 for none; step :math:`w` has the full rate.
        total_steps: more than ``warmup_steps``; this and all later steps have the last rate.
        min_ratio: between 0 and 1.
        last_epoch: steps taken before, -1 for none.

    Source: Loshchilov and Hutter, arXiv:1608.03983, without restarts; the warm-up: Goyal et al.,
    arXiv:1706.02677.
    """

    def _decay(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class WarmupLinearLR(_WarmupDecayLR):
    r"""Linear warm-up to the optimizer's ``lr``, then a straight line down to ``min_ratio`` of it.

    .. math::
        lr_n = lr \cdot \begin{cases}
            n / w & n < w \\
            r + (1 - r) (1 - x) & n \ge w
        \end{cases}
        \quad x = \min\left(\frac{n - w}{T - w}, 1\right), \;
        w = warmup\_steps, \; T = total\_steps, \; r = min\_ratio

    Arguments as of :class:`WarmupCosineLR`.

    Source: Devlin et al., arXiv:1810.04805, appendix A.2.
    """

    def _decay(self, progress: float) -> float:
        return 1 - progress
