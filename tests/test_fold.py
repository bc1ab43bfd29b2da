"""convert(model, inference=True): folded where that is proven, else untouched; the same outputs."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.models.resnet import ResNet
from fastdl.ops.conv_fused import FoldedConv


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: a sum without ReLU."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        width = 4 * channels
        self.block = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Functional(nn.Module):
    """ReLU and sums as torchvision writes them."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor] = operator.iadd) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.conv2(out)
        out = self.join(out, x)
        return torch.relu(out)


class Asks(nn.Module):
    """Goes another way for what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if isinstance(x, Tensor) else x


class Optional(nn.Module):
    """Cannot be recorded: a second argument that may be missing, and a loop over values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([InvertedResidual(), Functional()])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if mask is None else x * mask


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "MobileNet": (
        lambda: nn.Sequential(InvertedResidual(), InvertedResidual()),
        ["Conv2d + BatchNorm2d", "Conv2d + BatchNorm2d + ReLU", "Conv2d + BatchNorm2d + add"] * 2,
    ),
    "functional": (Functional, ["Conv2d + BatchNorm2d + ReLU", "Conv2d + add + ReLU"]),
    "sequence": (
        lambda: nn.Sequential(nn.Conv1d(8, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 1)),
        ["Conv1d + BatchNorm1d + ReLU"],
    ),
    "VGG": (
        lambda: nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(True), nn.Conv2d(4, 3, 2), nn.ReLU()),
        ["Conv2d + ReLU"] * 2,
    ),
    "asks": (lambda: nn.Sequential(Asks(), nn.ReLU()), ["Conv2d + BatchNorm2d"]),
    "optional": (
        Optional,
        ["Conv2d + BatchNorm2d", "Conv2d + BatchNorm2d + ReLU", "Conv2d + BatchNorm2d + add",
         "Conv2d + BatchNorm2d + ReLU", "Conv2d + add + ReLU"],
    ),
    "ResNet": (
        lambda: nn.Sequential(nn.Conv2d(8, 3, 1), ResNet((1, 2, 1, 1), 8, 10)),
        ["Conv2d + BatchNorm2d + ReLU"] * 11
        + ["Conv2d + BatchNorm2d + add + ReLU"] * 5
        + ["Conv2d + BatchNorm2d"] * 4,
    ),
}  # fmt: skip

all_models = pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=list(MODELS))


def evaluation(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with statistics and parameters that are not those of the start."""
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            for parameter in module.parameters():
                nn.init.normal_(parameter, 1, 0.5)
    return model


def parts(model: nn.Module) -> list[str]:
    return [module.parts for module in model.modules() if isinstance(module, FoldedConv)]


@all_models
@torch.no_grad()
def test_folded_models_give_the_same_outputs(
    make: Callable[[], nn.Module], expected: list[str]
) -> None:
    model = evaluation(make)
    first = model[0] if isinstance(model, nn.Sequential) else None
    x = torch.randn(2, 8, 40) if type(first) is nn.Conv1d else torch.randn(2, 8, 40, 40)
    native, state = model(x.clone()), copy.deepcopy(model.state_dict())
    folded = fastdl.convert(model, inference=True)
    assert sorted(parts(folded)) == sorted(expected)
    scale = native.abs().max().item()
    for layout in (torch.contiguous_format, torch.channels_last):
        own = x.contiguous(memory_format=layout) if x.dim() == 4 else x.clone()
        before = own.clone()
        torch.testing.assert_close(folded(own), native, rtol=1e-5, atol=1e-5 * max(scale, 1))
        assert torch.equal(own, before)
    torch.testing.assert_close(model(x), native, rtol=1e-4, atol=1e-5 * max(scale, 1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    replaced = [kind for _, kind in fastdl.report(folded).replaced]
    assert [kind for kind in replaced if "Conv" in kind] and parts(folded) == [
        kind for kind in replaced if " + " in kind
    ]


@all_models
@torch.no_grad()
def test_folded_models_can_be_copied_pickled_and_compiled(
    make: Callable[[], nn.Module], expected: list[str]
) -> None:
    folded = fastdl.convert(evaluation(make), inference=True)
    dims = 1 if any("1d" in part for part in expected) else 2
    x = torch.randn(2, 8, *[40] * dims)
    output = folded(x)
    others = [copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))] if dims == 1 else []
    others.append(torch.compile(folded, backend="aot_eager", fullgraph=True))
    for other in others:
        torch.testing.assert_close(other(x), output)


def test_a_model_in_training_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"eval\(\)"):
        fastdl.convert(model, inference=True)
    assert type(model[0]) is nn.Conv2d
    folded = fastdl.convert(model.eval(), inference=True)
    with pytest.raises(RuntimeError, match="folded for inference"):
        folded.train()
    folded.eval()
    assert model.train()[0].training


def test_inputs_have_their_gradients_and_folded_weights_have_none() -> None:
    model = evaluation(Functional)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    folded = fastdl.convert(model, inference=True)
    (grad,) = torch.autograd.grad(folded(x).sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class Shared(nn.Module):
    """Results that go to two places, and writes that others see."""

    def __init__(self, use: Callable[[Shared, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def norm_and_more(m: Shared, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y.mean()


def input_written_to(m: Shared, x: Tensor) -> Tensor:
    x = x * 1
    y = m.conv(x)
    x.mul_(2)
    return y + x


def residual_written_to(m: Shared, x: Tensor) -> Tensor:
    z = x * 1
    alias = z.view(-1)
    z += m.conv(x)
    return z * alias.mean()


def conv_twice(m: Shared, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)).relu() + m.conv(x)


UNSAFE: dict[str, tuple[Any, list[str]]] = {
    "a result used twice": (norm_and_more, []),
    "an input that is written to": (input_written_to, []),
    "a residual that is written to": (residual_written_to, []),
    "a number added": (lambda m, x: m.conv(x) + 1, []),
    "added to itself": (lambda m, x: (lambda y: y + y)(m.conv(x)), []),
    "a random tensor": (lambda m, x: m.norm(m.conv(x)) + torch.randn(1, 8, 1, 1), []),
    "one convolution twice": (conv_twice, ["Conv2d + BatchNorm2d + ReLU", "Conv2d + add"]),
}


@pytest.mark.parametrize(("use", "expected"), UNSAFE.values(), ids=list(UNSAFE))
@torch.no_grad()
def test_what_is_not_proven_is_left_alone(use: Any, expected: list[str]) -> None:
    model, x = evaluation(lambda: Shared(use)), torch.randn(2, 8, 5, 6)
    torch.manual_seed(5)
    native = model(x)
    folded = fastdl.convert(model, inference=True)
    assert sorted(parts(folded)) == sorted(expected)
    torch.manual_seed(5)
    torch.testing.assert_close(folded(x), native, rtol=1e-4, atol=1e-5)


def test_hooks_other_paddings_and_filtered_modules_are_left_alone() -> None:
    def make(**options: Any) -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, **options), nn.BatchNorm2d(8)).eval()

    hooked = make()
    calls: list[int] = []
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    folded = fastdl.convert(hooked, inference=True)
    folded(torch.randn(1, 8, 4, 4))
    assert folded is hooked and calls == [1]
    reflected = make(padding_mode="reflect")
    assert fastdl.convert(reflected, inference=True) is reflected
    for name in ("0", "1"):
        filtered = make()
        keep = fastdl.convert(filtered, lambda _, n, name=name: n != name, inference=True)
        assert keep is filtered and not parts(keep)
    without = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)).eval()
    assert fastdl.convert(without, inference=True) is without
