"""Converted models: the same results in every mode, the same training, the same tools of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fastdl


class Attention(nn.Module):
    """Attention by hand, as many models write it."""

    def __init__(self, features: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(features, 3 * features)
        self.softmax = nn.Softmax(dim=-1)
        self.norm = nn.RMSNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, features = x.shape
        query, key, value = (
            t.view(batch, length, self.heads, -1).transpose(1, 2)
            for t in self.project(self.norm(x)).chunk(3, dim=-1)
        )
        mask = torch.ones(length, length).tril() == 0
        scores = (query @ key.transpose(-1, -2)).masked_fill(mask, float("-inf"))
        mixed = (self.softmax(scores) @ value).transpose(1, 2)
        return x + mixed.reshape(batch, length, features)


class Double(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class ChannelsFirst(nn.Module):
    """A convolutional block that normalises permuted activations, and classifies pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(5, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.output = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(-1)[:, :5].contiguous(memory_format=torch.channels_last)
        x = self.norm(self.convolution(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.output(x).flatten(2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True),
    "encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        16, 4, 32, 0.0, batch_first=True, norm_first=True
    ),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2, nn.LayerNorm(16)
    ),
    "attention": lambda: nn.Sequential(Attention(), Attention(), nn.LogSoftmax(dim=-1)),
    "channels first": ChannelsFirst,
    "perceptron": lambda: nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32, bias=False), nn.GELU(), nn.Linear(32, 7), nn.Softmin(-1)
    ),
}

all_models = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))


def native_and_converted(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    native = make()
    converted = fastdl.convert(copy.deepcopy(native))
    assert fastdl.report(converted).replaced
    return native, converted


@all_models
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_converted_models_give_the_same_results(
    make: Callable[[], nn.Module], training: bool, gradients: bool
) -> None:
    x = torch.randn(3, 6, 16)
    with torch.set_grad_enabled(gradients):
        native, converted = (model.train(training)(x) for model in native_and_converted(make))
    torch.testing.assert_close(converted, native)


@all_models
def test_converted_models_give_the_same_results_under_autocast(
    make: Callable[[], nn.Module],
) -> None:
    x = torch.randn(3, 6, 16)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        native, converted = (model(x) for model in native_and_converted(make))
    assert converted.dtype == native.dtype
    torch.testing.assert_close(converted, native, rtol=3e-2, atol=3e-2)


@all_models
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_five_steps_of_training_give_the_same_losses(
    make: Callable[[], nn.Module], name: str
) -> None:
    models = native_and_converted(make)
    losses: list[list[float]] = []
    for model, package in zip(models, (torch.optim, fastdl.optim), strict=True):
        torch.manual_seed(4)
        optimizer = getattr(package, name)(model.parameters(), lr=1e-3, weight_decay=0.01)
        losses.append([])
        for _ in range(5):
            x = torch.randn(3, 6, 16)
            target = torch.rand(model(x).shape)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    # Not the parameters: where a gradient is zero but for rounding, Adam follows its sign.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


@all_models
def test_converted_models_train_without_hand_over(make: Callable[[], nn.Module]) -> None:
    _, model = native_and_converted(make)
    optimizer = fastdl.optim.AdamW(model.parameters())
    with fastdl.strict():
        model(torch.randn(3, 6, 16)).sum().backward()
        optimizer.step()


def test_encoder_with_padding_mask_takes_the_fast_path_of_torch_or_not_alike() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    native = nn.TransformerEncoder(layer, 2).eval()
    converted = fastdl.convert(copy.deepcopy(native))
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        outputs = [model(x, src_key_padding_mask=padding) for model in (converted, native)]
    assert outputs[0].shape == outputs[1].shape
    torch.testing.assert_close(*outputs)


@all_models
def test_converted_models_compile_whole_and_export(make: Callable[[], nn.Module]) -> None:
    torch.compiler.reset()
    native, converted = native_and_converted(make)
    x = torch.randn(3, 6, 16)
    compiled = torch.compile(converted, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), native(x))
    program = torch.export.export(converted.eval(), (x,))
    torch.testing.assert_close(program.module()(x), native.eval()(x), rtol=1e-4, atol=1e-5)


def test_distributed_and_averaged_wrappers_see_through() -> None:
    model = fastdl.convert(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    x = torch.randn(3, 4)
    torch.testing.assert_close(averaged(x), model(x))
    assert type(averaged.module[1]) is fastdl.nn.LayerNorm


def test_parametrized_modules_stay_untouched() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Double())
    kind = type(model[0])
    fastdl.convert(model)
    assert type(model[0]) is kind and type(model[1]) is fastdl.nn.LayerNorm
    x = torch.randn(3, 8)
    torch.testing.assert_close(model[0](x), 2 * nn.functional.layer_norm(x, (8,)))
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.LayerNorm


def test_converted_modules_can_be_parametrized_and_pruned_later() -> None:
    layer, x = fastdl.convert(nn.LayerNorm(8)), torch.randn(3, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    torch.testing.assert_close(layer(x), 2 * nn.functional.layer_norm(x, (8,)))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is fastdl.nn.LayerNorm
    prune.random_unstructured(layer, "weight", amount=0.5)
    assert (layer(x) == 0).any(0).sum() == 4


def test_lazy_and_scripted_modules_stay_untouched() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LayerNorm(8))
    fastdl.convert(model)
    assert model(torch.randn(3, 5)).shape == (3, 8)
    traced = torch.jit.trace(nn.Sequential(nn.LayerNorm(8)), torch.randn(3, 8))
    kinds = [type(module) for module in traced.modules()]
    assert [type(module) for module in fastdl.convert(traced).modules()] == kinds
