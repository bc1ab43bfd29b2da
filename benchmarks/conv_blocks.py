"""Blocks of models whose convolutions are timed together with what is around them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.models.resnet import Bottleneck


class InvertedResidual(nn.Module):
    """Sandler et al., MobileNetV2 (2018)."""

    def __init__(self, channels: int, expansion: int = 6) -> None:
        super().__init__()
        width = expansion * channels
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.residual(x)
        return result


class ConvNeXtBlock(nn.Module):
    """Liu et al., A ConvNet for the 2020s (2022), without layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.widen = nn.Conv2d(channels, 4 * channels, 1)
        self.activation = nn.GELU()
        self.narrow = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        widened = self.activation(self.widen(self.norm(self.depthwise(x))))
        result: Tensor = x + self.narrow(widened)
        return result


# what makes it, its channels, the size of its images
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-50 block": (lambda: Bottleneck(256, 64, 1), 256, 56),
    "ResNet-50 late block": (lambda: Bottleneck(1024, 256, 1), 1024, 14),
    "MobileNetV2 block": (lambda: InvertedResidual(32), 32, 28),
    "ConvNeXt block": (lambda: ConvNeXtBlock(96), 96, 56),
}
