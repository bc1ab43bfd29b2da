"""Records the forward of modules by torch.fx, where a record is what every call does."""

from __future__ import annotations

import dis
import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from fastdl import nn
from fastdl.ops.sequential import calls_forward_alone

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
_SEQUENTIALS = (torch.nn.Sequential, nn.Sequential)
# A forward that uses these may go another way than it went when it was recorded.
_QUESTIONS = {
    "isinstance", "hasattr", "getattr", "type", "callable", "is_tensor", "is_grad_enabled",
    "is_autocast_enabled", "is_inference_mode_enabled", "random",
}  # fmt: skip


def is_leaf(module: torch.nn.Module) -> bool:
    """Whether it is one op of torch or fastdl, and not a container of others."""
    package = type(module).__module__.split(".")[:2]
    known = package[0] == "fastdl" or package == ["torch", "nn"]
    return known and not isinstance(module, _CONTAINERS)


class _Proxy(fx.Proxy):
    """One for which ``x += y`` is a write to x, where torch.fx's own makes a new tensor."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda x, y: x.tracer.create_proxy("call_function", function, (x, y), {})


for _name in fx.graph.inplace_methods:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Enters all modules but ops and those that are not to be recorded."""

    def __init__(self, closed: Collection[torch.nn.Module] = ()) -> None:
        super().__init__()
        self.closed = closed

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or m in self.closed

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        # One that the forward made of nothing: made once, it might be written to, or be random.
        if isinstance(a, torch.Tensor) and not self._belongs_to_root(a):
            raise ValueError("a tensor that is none of the module's")
        return super().create_arg(a)

    def _belongs_to_root(self, tensor: torch.Tensor) -> bool:
        members = (*self.root.parameters(), *self.root.buffers())
        return any(tensor is member for member in members)


def _holds(module: torch.nn.Module) -> bool:
    """Whether a record holds for every call, as far as the code of the forward tells."""
    if type(module) in _SEQUENTIALS:
        return calls_forward_alone(module)
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return False
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    parameters = list(inspect.signature(forward).parameters.values())
    return (
        code is not None
        and calls_forward_alone(module)
        and all(p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
        and not _QUESTIONS.intersection(code.co_names)
        and not any(it.opname == "STORE_ATTR" for it in dis.get_instructions(code))
    )


def record(module: torch.nn.Module, closed: Collection[torch.nn.Module]) -> fx.Graph | None:
    """The graph of the module, in which those of ``closed`` are single calls; None if unsure."""
    if not _holds(module):
        return None
    try:
        graph = _Tracer(closed).trace(module)
    except Exception:  # noqa: BLE001  (a forward may raise anything for what is no tensor)
        return None
    for node in graph.nodes:
        node.type = None  # annotations may be texts, which no copy of a graph takes
    return graph
