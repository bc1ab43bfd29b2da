"""Train a small ResNet on real images twice: with torch alone, and with fastdl.

    python -m examples.resnet [--output resnet.png] [--epochs 6] [--images 400]

Two data sets that come with packages, so that nothing is downloaded:

- digits: the 1797 scanned 8x8 digits of scikit-learn, enlarged to 32x32, a quarter held out;
- photographs: patches of 64x64 pixels, in grey and each brought to mean 0 and deviation 1, of eight
  photographs of scikit-image and scikit-learn: a wall, a lawn, gravel, tissue, galaxies, a cup of
  coffee, a temple, a flower. The class of a patch is the photograph it is from, so textures are
  recognised here and not things: much easier than ImageNet, which no package ships. Held-out
  patches are from the right quarter of each photograph, those to learn from from the rest.

The run passes if both sides exceed the required accuracy on the held-out images, differ by less
than the noise of that number, and agree on the loss of the first epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.color
import skimage.data
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples.side_by_side import SEED, DataSet, draw, find_failures, summarize, train

PATCH = 64
STRIDE = 32  # patches overlap by half
REQUIRED_ACCURACY = {"digits": 0.95, "photographs": 0.8}
# Adam divides small gradients by their own size: changing torch's initial weights by 1e-7 changes
# the loss of its seventh step by 1e-2.
FIRST_EPOCH_LOSS_TOLERANCE = 2e-2


class Block(nn.Module):
    """Two 3x3 convolutions around a residual connection."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        result: Tensor = self.relu(inner + self.shortcut(x))
        return result


def small_resnet(classes: int, width: int = 16, stem_stride: int = 1) -> nn.Sequential:
    """Grey images to the scores of classes: a stem and three stages of two blocks."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, width, 3, stem_stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(3):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(channels, width << stage, stride))
            channels = width << stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def load_enlarged_digits() -> DataSet:
    """scikit-learn's digits, from 8x8 to 32x32 by bilinear interpolation."""
    data = load_digits()
    split = train_test_split(
        data.images, data.target, test_size=0.25, random_state=SEED, stratify=data.target
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)

    def enlarged(images: Tensor) -> Tensor:
        scaled = (images.float() / 8 - 1).unsqueeze(1)
        return nn.functional.interpolate(scaled, size=(32, 32), mode="bilinear")

    return DataSet(enlarged(train_images), train_labels, enlarged(test_images), test_labels)


def load_photographs() -> list[np.ndarray]:
    """Eight photographs, in grey from 0 to 1."""
    photographs = [
        skimage.data.brick(),
        skimage.data.grass(),
        skimage.data.gravel(),
        skimage.data.immunohistochemistry(),
        skimage.data.hubble_deep_field()[:512, :512],  # as large as the others
        skimage.data.coffee(),
        load_sample_image("china.jpg"),
        load_sample_image("flower.jpg"),
    ]
    return [skimage.color.rgb2gray(p) if p.ndim == 3 else p / 255 for p in photographs]


def cut_patches(photograph: np.ndarray) -> Tensor:
    """Patches (n, 1, PATCH, PATCH), STRIDE pixels apart."""
    pixels = torch.from_numpy(photograph).float()
    patches = pixels.unfold(0, PATCH, STRIDE).unfold(1, PATCH, STRIDE)
    patches = patches.reshape(-1, 1, PATCH, PATCH)
    deviation, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    return (patches - mean) / (deviation + 1e-3)


def cut_columns(photograph: np.ndarray, held_out: bool) -> np.ndarray:
    """The right quarter of a photograph, or the rest."""
    border = photograph.shape[1] * 3 // 4
    return photograph[:, border:] if held_out else photograph[:, :border]


def load_patches() -> DataSet:
    """Patches of the photographs, those to learn from and the held-out ones from separate parts."""
    sets: dict[bool, list[Tensor]] = {True: [], False: []}
    labels: dict[bool, list[Tensor]] = {True: [], False: []}
    for label, photograph in enumerate(load_photographs()):
        for held_out in (False, True):
            patches = cut_patches(cut_columns(photograph, held_out))
            sets[held_out].append(patches)
            labels[held_out].append(torch.full((len(patches),), label))
    return DataSet(*(torch.cat(x) for x in (sets[False], labels[False], sets[True], labels[True])))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train both sides on both sets, print the verdicts, save the picture; returns measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, help="to learn from, of each set; all by default")
    parser.add_argument("--output", type=Path, default=Path("resnet.png"))
    arguments = parser.parse_args(argv)

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(2, 1))
    results: dict[str, Any] = {}
    tasks = (("digits", load_enlarged_digits, 10, 1), ("photographs", load_patches, 8, 2))
    for (name, load, classes, stem_stride), row in zip(tasks, axes, strict=True):
        images = load().subset(arguments.images)
        print(f"{name}: {len(images.train_inputs)} images, {len(images.test_inputs)} held out")
        torch.manual_seed(SEED)
        model = small_resnet(classes, stem_stride=stem_stride)
        native, fast = train(model, images, arguments.epochs, name)
        accuracy = native.accuracies[-1]
        noise = 2 * (max(accuracy * (1 - accuracy), 0.01) / len(images.test_inputs)) ** 0.5
        failures = find_failures(
            native, fast, REQUIRED_ACCURACY[name], noise, FIRST_EPOCH_LOSS_TOLERANCE
        )
        results[name] = summarize(native, fast, failures, name)
        draw(*row, native, fast, f"{name.capitalize()}: same loss")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)
    print(f"picture: {arguments.output}")
    return results


if __name__ == "__main__":
    raise SystemExit(0 if all(result["passed"] for result in main().values()) else 1)
