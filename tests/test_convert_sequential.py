"""Sequential: a BatchNorm and the ReLU behind it run in one pass, where nobody can tell."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastdl
from tests.compare import assert_same_bits


def model(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )


def fused(call: Callable[[], object]) -> int:
    """How many times batch norms ran together with a ReLU: those after which none was called."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    counts = {event.key: event.count for event in profiler.key_averages()}
    norms = counts.get("fastdl::batch_norm", 0) + counts.get("aten::batch_norm", 0)
    names = ("relu", "relu_", "activation", "activation_")
    relus = sum(n for key, n in counts.items() if key.split("::")[-1] in names)
    return norms - 1 - relus


def outputs_and_gradients(module: nn.Module) -> list[Tensor]:
    torch.manual_seed(4)
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    output = module(x)
    grads = torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])
    module.eval()
    return [output, *grads, module(x), *module.state_dict().values()]


@pytest.mark.parametrize("inplace", [True, False])
def test_values_gradients_and_running_statistics_stay(inplace: bool) -> None:
    native, converted = model(inplace), fastdl.convert(model(inplace))
    assert type(converted) is fastdl.nn.Sequential
    with fastdl.allow_winograd(False):
        results = [outputs_and_gradients(module) for module in (converted, native)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert fused(lambda: converted(torch.randn(2, 3, 9, 9))) == 2


def test_repr_items_state_and_copies_are_those_of_before() -> None:
    native, converted = model(), model()
    before = list(converted)
    fastdl.convert(converted)
    assert repr(converted) == repr(native)
    assert list(converted) == before and converted[1] is before[1] and len(converted) == 7
    assert list(converted.state_dict()) == list(native.state_dict())
    assert isinstance(converted[1:3], nn.Sequential)
    torch.testing.assert_close(converted[1:3](x := torch.randn(2, 8, 5, 5)), native[1:3](x))
    for clone in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert type(clone) is fastdl.nn.Sequential
        assert_same_bits(clone(y := torch.randn(2, 3, 9, 9)), converted(y))
    assert fastdl.report(converted).replaced[0] == ("", "Sequential")
    assert type(fastdl.revert(converted)) is nn.Sequential
    assert all(type(child).__module__.startswith("torch.nn") for child in converted)


def test_only_sequentials_with_such_neighbours_are_converted() -> None:
    for children in (
        [nn.BatchNorm2d(3)],
        [nn.ReLU(), nn.BatchNorm2d(3)],
        [nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()],
        [nn.BatchNorm2d(3), nn.ReLU6()],
        [nn.LayerNorm(3), nn.ReLU()],
        [nn.SyncBatchNorm(3), nn.ReLU()],
        [],
    ):
        assert type(fastdl.convert(nn.Sequential(*children))) is nn.Sequential


class MySequential(nn.Sequential):
    """A user's own class."""


class MyReLU(nn.ReLU):
    """A user's own class, which does something else."""

    def forward(self, input: Tensor) -> Tensor:
        return input + 1


def test_subclasses_are_left_alone() -> None:
    assert type(fastdl.convert(MySequential(nn.BatchNorm2d(3), nn.ReLU()))) is MySequential
    other = fastdl.convert(nn.Sequential(nn.BatchNorm2d(3), MyReLU()))
    assert type(other) is nn.Sequential


def test_shared_modules_are_fused_at_every_place() -> None:
    relu = nn.ReLU()
    shared = nn.Sequential(nn.BatchNorm1d(4), relu, nn.BatchNorm1d(4), relu, nn.BatchNorm1d(4))
    native = copy.deepcopy(shared)
    fastdl.convert(shared)
    x = torch.randn(6, 4)
    torch.testing.assert_close(shared(x), native(x))
    assert fused(lambda: shared(x)) == 2


@pytest.mark.parametrize("denied", ["2", "1", ""])
def test_filter_can_forbid_it(denied: str) -> None:
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    fastdl.convert(small, filter_fn=lambda _, name: name != denied)
    assert type(small) is nn.Sequential


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_called_and_see_their_module_alone(which: int, register: str) -> None:
    seen: list[str] = []
    converted, native = fastdl.convert(model(False)), model(False)
    for module in (converted, native):
        getattr(module[which], register)(lambda m, *_: seen.append(type(m).__name__))
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    results = [torch.autograd.grad(m(x).sin().sum(), x)[0] for m in (converted, native)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2 and seen[0] == seen[1]
    assert fused(lambda: converted(x)) == 1


def test_global_hooks_see_every_module() -> None:
    names: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, *_: names.append(type(m).__name__)
    )
    try:
        fastdl.convert(model())(torch.randn(2, 3, 9, 9))
    finally:
        handle.remove()
    assert names.count("ReLU") == 2 and names.count("BatchNorm2d") == 3


def test_a_forward_of_the_instance_is_called() -> None:
    converted = fastdl.convert(model())
    converted[2].forward = lambda x: x * 0
    assert fused(lambda: converted(torch.randn(2, 3, 9, 9))) == 1 + 1  # and one ReLU less
    assert (converted[:3](torch.randn(2, 3, 9, 9)) == 0).all()


def test_changed_children_are_seen() -> None:
    converted = fastdl.convert(model())
    converted[2] = nn.Identity()
    native = model()
    native[2] = nn.Identity()
    torch.testing.assert_close(
        converted(x := torch.randn(2, 3, 9, 9)), native(x), rtol=1e-4, atol=1e-5
    )


def test_nested_in_a_model_of_names() -> None:
    body = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    net = nn.Sequential(OrderedDict(body=body, head=nn.ReLU()))
    fastdl.convert(net)
    assert type(net) is nn.Sequential and type(net.body) is fastdl.nn.Sequential
    kept = {name: reason for name, _, reason in fastdl.report(net).kept}
    assert "body" not in kept


def test_sync_batch_norm_is_kept_and_the_report_says_why() -> None:
    norm = fastdl.convert(nn.SyncBatchNorm(3))
    assert type(norm) is nn.SyncBatchNorm
    ((_, kind, reason),) = fastdl.report(norm).kept
    assert kind == "SyncBatchNorm" and "processes" in reason


def test_compiled_and_traced_models_give_the_same() -> None:
    converted = fastdl.convert(model()).eval()
    x = torch.randn(2, 3, 9, 9)
    expected = converted(x)
    compiled = torch.compile(converted, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.jit.trace(converted, x)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(converted)(x), expected)
