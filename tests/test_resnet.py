"""A small ResNet: converted but for what torch keeps, and the same training as natively."""

from __future__ import annotations

import pytest
import torch

import fastdl
from benchmarks.models.resnet import ResNet, training_step


def small_resnet() -> ResNet:
    torch.manual_seed(1)
    return ResNet(depths=(1, 2, 1, 1), width=8, classes=10)


def test_everything_that_fastdl_has_is_converted() -> None:
    report = fastdl.report(fastdl.convert(small_resnet()))
    assert {kind for _, kind, _ in report.kept} == {"Flatten", "Identity", "Linear"}
    assert {why for _, _, why in report.kept} == {"no fastdl module of this type"}
    replaced = [kind for _, kind in report.replaced]
    assert replaced.count("BatchNorm2d") == 1 + 3 * 5 + 4
    assert replaced.count("Conv2d") == 1 + 3 * 5 + 4
    assert replaced.count("ReLU") == 1 + 3 * 5
    assert replaced.count("Sequential") == 1 + 5  # those in which a ReLU follows a batch norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_five_steps_give_the_same_losses(layout: torch.memory_format) -> None:
    images = torch.randn(8, 3, 64, 64).contiguous(memory_format=layout)
    labels = torch.randint(10, (8,))
    models = [small_resnet().to(memory_format=layout) for _ in range(2)]
    fastdl.reset_hand_overs()
    native, fast = (
        training_step(model, images, labels, fast=side, lr=0.02)
        for model, side in zip(models, (False, True), strict=True)
    )
    losses = torch.tensor([(native(), fast()) for _ in range(5)])
    torch.testing.assert_close(losses[:, 1], losses[:, 0], rtol=1e-3, atol=1e-4)
    assert losses[-1, 0] < 0.9 * losses[0, 0], "nothing was learned"
    assert not fastdl.report().hand_overs
    for name, buffer in models[0].named_buffers():
        torch.testing.assert_close(models[1].get_buffer(name), buffer, rtol=1e-2, atol=1e-3)
