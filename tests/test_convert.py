"""convert, revert and report: which modules change, and what stays the same when they do."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_same_bits

NAMES = fastdl.nn.__all__


class MyLayerNorm(nn.LayerNorm):
    """A user's own class, which may rely on what it overrides."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Model(nn.Module):
    """Modules that are converted and some that are not, nested and shared."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.Sequential(
            OrderedDict(
                linear=nn.Linear(8, 8),
                inner=nn.Sequential(nn.RMSNorm(8), nn.Softmax(dim=-1)),
                again=self.norm,
            )
        )
        self.list = nn.ModuleList([nn.LogSoftmax(dim=1), MyLayerNorm(8)])
        self.dictionary = nn.ModuleDict({"softmin": nn.Softmin(dim=0)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(x))
        for module in self.list:
            x = module(x)
        return self.dictionary["softmin"](x)


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_known_types_are_converted(name: str) -> None:
    arguments = {
        "BatchNorm1d": (8,),
        "BatchNorm2d": (8,),
        "BatchNorm3d": (8,),
        "Conv1d": (8, 4, 3),
        "Conv2d": (8, 4, 3),
        "Embedding": (5, 8),
        "GroupNorm": (2, 8),
        "LayerNorm": (8,),
        "LinearCrossEntropyLoss": (8, 3),
        "MultiheadAttention": (8, 2),
        "RMSNorm": (8,),
        "Sequential": (nn.BatchNorm1d(8), nn.ReLU()),
    }.get(name, (2,) if "Pool" in name else ())
    module = getattr(nn, name)(*arguments)
    assert fastdl.convert(module) is module
    assert type(module) is getattr(fastdl.nn, name)
    assert isinstance(module, getattr(nn, name))
    assert fastdl.revert(module) is module
    assert type(module) is getattr(nn, name)


def test_nested_and_shared_modules_are_converted_in_place() -> None:
    model = Model()
    modules = dict(model.named_modules(remove_duplicate=False))
    assert fastdl.convert(model) is model
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert model.blocks.again is model.norm
    assert types(model) == {
        "": Model,
        "norm": fastdl.nn.LayerNorm,
        "blocks": nn.Sequential,
        "blocks.linear": nn.Linear,
        "blocks.inner": nn.Sequential,
        "blocks.inner.0": fastdl.nn.RMSNorm,
        "blocks.inner.1": fastdl.nn.Softmax,
        "list": nn.ModuleList,
        "list.0": fastdl.nn.LogSoftmax,
        "list.1": MyLayerNorm,
        "dictionary": nn.ModuleDict,
        "dictionary.softmin": fastdl.nn.Softmin,
    }


def test_converting_twice_and_reverting_twice_change_nothing_more() -> None:
    model = Model()
    original = types(model)
    converted = types(fastdl.convert(model))
    assert converted != original
    assert types(fastdl.convert(model)) == converted
    assert types(fastdl.revert(model)) == original
    assert types(fastdl.revert(model)) == original


def test_converted_model_gives_the_values_and_gradients_of_before() -> None:
    model, x = Model().double(), torch.randn(5, 8, dtype=torch.float64)
    leaves = list(model.parameters())
    results = []
    for change in (lambda m: m, fastdl.convert, fastdl.revert):
        output = change(model)(x)
        results.append([output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)])
    torch.testing.assert_close(results[1], results[0])
    for one, other in zip(results[2], results[0], strict=True):
        assert_same_bits(one, other)


def test_parameters_buffers_hooks_and_attributes_survive() -> None:
    model = Model()
    calls: list[str] = []
    model.norm.register_forward_hook(lambda *_: calls.append("forward"))
    model.norm.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.norm.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.norm.register_buffer("extra", torch.ones(2))
    model.norm.note = "mine"
    model.norm.eval()
    model.norm.weight.requires_grad_(False)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    fastdl.convert(model)
    assert all(parameters[name] is value for name, value in model.named_parameters())
    assert all(buffers[name] is value for name, value in model.named_buffers())
    assert model.norm.note == "mine" and not model.norm.training
    assert not model.norm.weight.requires_grad
    model.norm(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "backward"]


def test_repr_is_that_of_before() -> None:
    model = Model()
    text = repr(model)
    assert repr(fastdl.convert(model)) == text


def test_state_dicts_load_both_ways() -> None:
    native, converted = Model(), fastdl.convert(Model())
    assert list(native.state_dict()) == list(converted.state_dict())
    converted.load_state_dict(native.state_dict(), strict=True)
    native.load_state_dict(converted.state_dict(), strict=True)
    x = torch.randn(5, 8)
    torch.testing.assert_close(converted(x), native(x))


def through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_converted_models(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model, x = fastdl.convert(Model()), torch.randn(5, 8)
    other = duplicate(model)
    assert types(other) == types(model)
    assert_same_bits(other(x), model(x))
    assert all(
        one is not another
        for one, another in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_filter_chooses_by_module_and_qualified_name() -> None:
    seen: dict[str, nn.Module] = {}

    def choose(module: nn.Module, name: str) -> bool:
        seen[name] = module
        return isinstance(module, nn.RMSNorm) or name == "norm"

    model = Model()
    fastdl.convert(model, filter_fn=choose)
    assert {
        name for name, kind in types(model).items() if kind.__module__.startswith("fastdl")
    } == {
        "norm",
        "blocks.inner.0",
    }
    modules = dict(model.named_modules())
    assert seen and all(modules[name] is module for name, module in seen.items())


@pytest.mark.parametrize("wrong", [None, 3, torch.zeros(2), nn.LayerNorm])
def test_what_is_no_module_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError, match="Module"):
        fastdl.convert(wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="Module"):
        fastdl.revert(wrong)  # type: ignore[type-var]


def test_report_lists_replaced_and_kept_modules_with_reasons() -> None:
    model = fastdl.convert(Model(), filter_fn=lambda _, name: name != "dictionary.softmin")
    report = fastdl.report(model)
    assert report.replaced == [
        ("norm", "LayerNorm"),
        ("blocks.inner.0", "RMSNorm"),
        ("blocks.inner.1", "Softmax"),
        ("list.0", "LogSoftmax"),
    ]
    kept = {name: (kind, reason) for name, kind, reason in report.kept}
    assert kept.keys() == {"blocks.linear", "list.1", "dictionary.softmin"}
    assert kept["list.1"][0] == "MyLayerNorm" and "subclass" in kept["list.1"][1]
    assert all(reason for _, reason in kept.values())
    text = str(report)
    for name, kind in [*report.replaced, *((name, kind) for name, (kind, _) in kept.items())]:
        assert name in text and kind in text


def test_report_of_nothing_and_of_a_single_module() -> None:
    empty = fastdl.report()
    assert (empty.replaced, empty.kept, empty.hand_overs) == ([], [], [])
    assert str(empty)
    assert fastdl.report(fastdl.convert(nn.LayerNorm(3))).replaced == [("", "LayerNorm")]
    assert str(fastdl.report(nn.LayerNorm(3)))
