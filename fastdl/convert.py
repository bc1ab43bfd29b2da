"""Makes existing models use fastdl's modules, undoes it, and tells what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar, overload

import torch

from fastdl import _C, nn
from fastdl.fold import fold
from fastdl.ops.conv_fused import FoldedConv
from fastdl.ops.sequential import BATCH_NORMS, relus_after_batch_norms

ModuleType = TypeVar("ModuleType", bound=torch.nn.Module)
FilterFunction = Callable[[torch.nn.Module, str], bool]

# The twin of each torch.nn class: a subclass that adds no state and overrides forward alone, so
# that changing an instance's __class__ is all it takes, either way.
_TWINS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__
}
_ORIGINALS = {twin: original for original, twin in _TWINS.items()}


@overload
def convert(
    model: ModuleType,
    filter_fn: FilterFunction | None = None,
    *,
    inference: Literal[False] = False,
) -> ModuleType: ...
@overload
def convert(
    model: torch.nn.Module, filter_fn: FilterFunction | None = None, *, inference: bool
) -> torch.nn.Module: ...
def convert(
    model: torch.nn.Module, filter_fn: FilterFunction | None = None, *, inference: bool = False
) -> torch.nn.Module:
    """Makes every supported module in ``model`` its fastdl twin, in place, and returns ``model``.

    Modules whose type is exactly a known ``torch.nn`` class change their ``__class__`` and nothing
    else: parameters, buffers, hooks, names, ``state_dict`` and ``isinstance`` stay as they are.
    Subclasses are left alone, as their authors may rely on what they override. A Sequential is
    converted when it has a converted BatchNorm with a ReLU behind it: it runs both in one pass.

    Args:
        model: any module; may itself be of a supported type.
        filter_fn: called with (module, qualified name); False keeps that module native.
        inference: returns another module, for evaluation only, in which a convolution, the batch
            norm, sum and ReLU behind it are one call, the batch norm folded into the weight.
            ``torch.fx`` records the model and so proves where that is right; where it cannot, the
            rest of the model stays as it is. What is not folded is shared with ``model``, whose
            own weights stay. Folded weights take no gradient, and later changes of ``model``'s
            do not reach them. A model in training mode is a ValueError.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert() expects a torch.nn.Module, got {type(model).__name__}")
    if inference and any(module.training for module in model.modules()):
        raise ValueError("convert(inference=True) takes a model in evaluation: call eval() first")
    sequentials = []
    for name, module in model.named_modules():
        twin = _TWINS.get(type(module))
        if twin is not None and (filter_fn is None or filter_fn(module, name)):
            if type(module) is torch.nn.Sequential:
                sequentials.append((name, module))
            else:
                module.__class__ = twin
    for name, sequential in sequentials:
        relus = relus_after_batch_norms(sequential, BATCH_NORMS)
        prefix = f"{name}." if name else ""
        if relus and all(filter_fn is None or filter_fn(r, prefix + key) for key, r in relus):
            sequential.__class__ = nn.Sequential
    return fold(model) if inference else model


def revert(model: ModuleType) -> ModuleType:
    """Makes every fastdl module in ``model`` its ``torch.nn`` original again, in place."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"revert() expects a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        original = _ORIGINALS.get(type(module))
        if original is not None:
            module.__class__ = original
    return model


@dataclass
class Report:
    """What :func:`report` found; ``str()`` makes it a table."""

    replaced: list[tuple[str, str]] = field(default_factory=list)  # (name, type)
    kept: list[tuple[str, str, str]] = field(default_factory=list)  # (name, type, reason)
    hand_overs: list[tuple[str, str, int]] = field(default_factory=list)  # (op, reason, count)

    def __str__(self) -> str:
        sections: list[tuple[str, list[tuple[str, ...]]]] = [
            ("replaced by fastdl", [(name or "(model)", kind) for name, kind in self.replaced]),
            ("kept", [(name or "(model)", kind, why) for name, kind, why in self.kept]),
            (
                "calls handed over to native torch",
                [(op, f"{count}x", reason) for op, reason, count in self.hand_overs],
            ),
        ]
        lines = []
        for title, rows in sections:
            lines.append(f"{title}: {len(rows) or 'none'}")
            widths = [max(len(row[i]) for row in rows) for i in range(2)] if rows else []
            for row in rows:
                cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
                lines.append("  " + "  ".join([*cells, *row[2:]]).rstrip())
        return "\n".join(lines)


def _reason_kept(module: torch.nn.Module) -> str:
    if isinstance(module, torch.nn.SyncBatchNorm):
        return "its statistics are those of all processes, which no fastdl kernel exchanges"
    if type(module) in _TWINS:
        return "not converted"
    for original in _TWINS:
        if isinstance(module, original):
            return f"a subclass of {original.__name__}: only that exact type is converted"
    return "no fastdl module of this type"


def _is_listed(module: torch.nn.Module) -> bool:
    """Whether a module that was kept computes something, or could have been converted."""
    if isinstance(module, torch.nn.Sequential) and any(module.children()):
        return type(module) is torch.nn.Sequential and bool(relus_after_batch_norms(module))
    return isinstance(module, tuple(_TWINS)) or not any(module.children())


def report(model: torch.nn.Module | None = None) -> Report:
    """What ``model`` has of fastdl, what was kept and why, and the calls handed over to native.

    Containers that compute nothing themselves are listed only when they could be converted. The
    hand-overs are those of the whole process since it started or :func:`reset_hand_overs`; without
    a model only they are given.
    """
    result = Report(hand_overs=_C.hand_overs())
    for name, module in model.named_modules() if model is not None else ():
        kind = type(module).__name__
        if isinstance(module, tuple(_ORIGINALS)):
            result.replaced.append((name, kind))
        elif isinstance(module, FoldedConv):
            result.replaced.append((name, module.parts))
        elif _is_listed(module):
            result.kept.append((name, kind, _reason_kept(module)))
    return result


def reset_hand_overs() -> None:
    """Sets the counts of calls handed over to native torch to zero."""
    _C.reset_hand_overs()


@contextmanager
def strict() -> Iterator[None]:
    """In this block and thread, a call handed over to native torch is a RuntimeError saying why."""
    before = _C.set_strict(True)
    try:
        yield
    finally:
        _C.set_strict(before)
