"""ResNet-50 and the training step of it that is timed.

Source: He et al., Deep Residual Learning for Image Recognition (2015), with the stride in the 3x3
convolution of a block, as torchvision has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastdl
from benchmarks.harness import Call

NAME = "resnet50"
BATCH, SIZE, CLASSES = 16, 224, 1000
SHAPE = f"{BATCH} images of {SIZE}x{SIZE}"
BEST_NATIVE = "channels_last"
EXPANSION = 4  # outputs of a block, as a multiple of its width


def normalised(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, or divides it by the stride, and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.residual = nn.Sequential(
            *normalised(in_channels, width, 1),
            nn.ReLU(inplace=True),
            *normalised(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *normalised(width, out_channels, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = normalised(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """Images (batch, 3, h, w) to scores (batch, classes); the defaults are ResNet-50."""

    def __init__(
        self, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = CLASSES
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *normalised(3, width, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks, channels = [], width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = EXPANSION * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(images)))
        return scores


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, fast: bool, lr: float = 0.1
) -> Call:
    """Forward, cross-entropy, backward and SGD; returns the loss. ``fast``: with fastdl's."""
    cross_entropy = (fastdl.functional if fast else nn.functional).cross_entropy
    if fast:
        model = fastdl.convert(model)
    sgd = (fastdl.optim if fast else torch.optim).SGD
    optimizer = sgd(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_model() -> nn.Module:
    """The model that is timed, from the same weights every time."""
    torch.manual_seed(0)
    return ResNet()


def make_step(fast: bool, best_native: bool) -> Call:
    """The step to time, on the same images."""
    layout = torch.channels_last if best_native else torch.contiguous_format
    model = make_model().to(memory_format=layout)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=layout)
    return training_step(model, images, torch.randint(CLASSES, (BATCH,)), fast)
