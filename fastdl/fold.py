"""Folds what follows the convolutions of a model in evaluation into them, where that is proven.

torch.fx records the forward of a model. What a convolution's result goes into and nothing else
does (a batch norm, a sum, ReLU) becomes one FoldedConv. A module that cannot be recorded, or whose
record might not hold for every call, is kept as it is, and its children are tried instead.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fastdl import nn
from fastdl.ops.conv_fused import FoldedConv
from fastdl.ops.sequential import calls_forward_alone
from fastdl.record import is_leaf, record

_NORMS: dict[type, type] = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_IN_PLACE = (operator.iadd, "add_")
_PURE = {torch.nn.Identity, FoldedConv, *(getattr(nn, name) for name in nn.__all__)}


def _has_convolution(module: torch.nn.Module) -> bool:
    return any(type(child) in _NORMS for child in module.modules())


class _Folder:
    """One recorded module."""

    def __init__(self, root: torch.nn.Module, graph: fx.Graph) -> None:
        self.graph = graph
        calls = [node for node in graph.nodes if node.op == "call_module"]
        self.modules: dict[str, Any] = {n.target: root.get_submodule(n.target) for n in calls}
        self.uses = Counter(node.target for node in calls)

    def module(self, node: fx.Node) -> Any:
        """The module that is called here, or None if it does not do what its class does alone."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return module if module is not None and calls_forward_alone(module) else None

    def only_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 else None

    def norm_behind(self, node: fx.Node, conv: Any) -> fx.Node | None:
        user = self.only_user(node)
        norm: Any = None if user is None else self.module(user)
        kind = type(norm)
        if kind is not _NORMS[type(conv)] or norm.running_mean is None:
            return None
        return user if norm.num_features == conv.out_channels else None

    def addition_behind(self, node: fx.Node, conv: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The node of the sum, and that of what is added."""
        user = self.only_user(node)
        if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
            return None
        residual = user.args[1] if user.args[0] is node else user.args[0]
        if not isinstance(residual, fx.Node) or residual is node:
            return None
        if user.target in _IN_PLACE and user.args[0] is residual:
            return None  # others may see what is written to it
        if not self.may_wait(conv, user):
            return None
        return user, residual

    def relu_behind(self, node: fx.Node) -> fx.Node | None:
        user = self.only_user(node)
        if user is None or user.args[:1] != (node,):
            return None
        if user.op == "call_module":
            return user if type(self.module(user)) is nn.ReLU else None
        return user if user.target in _RELUS else None

    def may_wait(self, conv: fx.Node, until: fx.Node) -> bool:
        """Whether nothing between these nodes can change what the convolution reads."""
        node = conv.next
        while node is not until:
            module = self.module(node)
            pure = type(module) in _PURE and not getattr(module, "inplace", False)
            if not pure and node.op != "get_attr":
                return False
            node = node.next
        return True

    def fold_at(self, conv_node: fx.Node) -> bool:
        conv = self.module(conv_node)
        if type(conv) not in _NORMS or len(conv_node.args) != 1 or conv_node.kwargs:
            return False
        if conv.padding_mode != "zeros":
            return False
        chain, residual = [conv_node], None
        norm_node = self.norm_behind(conv_node, conv)
        if norm_node is not None:
            chain.append(norm_node)
        if (found := self.addition_behind(chain[-1], conv_node)) is not None:
            residual = found[1]
            chain.append(found[0])
        relu_node = self.relu_behind(chain[-1])
        if relu_node is not None:
            chain.append(relu_node)
        if len(chain) == 1:
            return False
        norm = None if norm_node is None else self.module(norm_node)
        folded = FoldedConv(conv, norm, residual is not None, relu_node is not None)
        name = str(conv_node.target)
        if self.uses[name] > 1:
            name = f"{name}_{len(self.modules)}"
        self.modules[name] = folded
        # Where the convolution is, since its input may be written to later; or else at the sum.
        at = conv_node if found is None else found[0]
        arguments = (conv_node.args[0], *([] if residual is None else [residual]))
        with self.graph.inserting_before(at):
            chain[-1].replace_all_uses_with(self.graph.call_module(name, arguments))
        for node in reversed(chain):
            self.graph.erase_node(node)
        return True


class _Folding:
    """A model whose modules are folded one by one, each once."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.results: dict[torch.nn.Module, torch.nn.Module] = {}
        self.graphs: dict[torch.nn.Module, fx.Graph] = {}
        closed: set[torch.nn.Module] = set()
        for module in reversed(list(model.modules())):  # children first
            use = not is_leaf(module) and _has_convolution(module)
            graph = record(module, closed) if use else None
            if graph is None:
                closed.add(module)
            else:
                self.graphs[module] = graph

    def result(self, module: torch.nn.Module) -> torch.nn.Module:
        """The folded module; the same one if there is nothing to fold in it."""
        if module not in self.results:
            graph = self.graphs.get(module)
            make = self.with_folded_children if graph is None else self.folded_graph
            self.results[module] = make(module)
        return self.results[module]

    def folded_graph(self, module: torch.nn.Module) -> torch.nn.Module:
        graph = self.graphs[module]
        folder = _Folder(module, graph)
        attributes: dict[str, Any] = {
            node.target: operator.attrgetter(node.target)(module)
            for node in graph.nodes
            if node.op == "get_attr"
        }
        changed = [folder.fold_at(node) for node in list(graph.nodes)]
        for name, child in folder.modules.items():
            attributes[name] = child if isinstance(child, FoldedConv) else self.result(child)
            changed.append(attributes[name] is not child)
        return fx.GraphModule(attributes, graph).eval() if any(changed) else module

    def with_folded_children(self, module: torch.nn.Module) -> torch.nn.Module:
        """Where a child was folded a shallow copy of the module."""
        children = {name: self.result(child) for name, child in module.named_children()}
        if all(children[name] is child for name, child in module.named_children()):
            return module
        result = copy.copy(module)
        result._modules = {**module._modules, **children}
        return result


def fold(model: torch.nn.Module) -> torch.nn.Module:
    """``model`` with folded convolutions, sharing all that is not folded with it."""
    return _Folding(model).result(model)
