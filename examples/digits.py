"""Train one small transformer on handwritten digits twice: with torch alone, and with fastdl.

    python -m examples.digits [--output digits.png] [--epochs 20]

Data: the 1797 scanned 8x8 digits that come with scikit-learn, a quarter of them held out. The model
reads an image as 16 overlapping patches and is made of plain torch.nn modules. Both sides start
from the same weights and see the same batches in the same order; the second one differs by two
lines only, `fastdl.convert(model)` and `fastdl.optim.AdamW`. They train in turns, one epoch each,
so that a machine that slows down slows both.

The run passes if both sides classify more than 95 % of the held-out digits, differ by less than
the noise of that number, and agree on the loss of the first epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples.side_by_side import SEED, DataSet, draw, find_failures, summarize, train

REQUIRED_ACCURACY = 0.95
# 450 held-out digits at 98 %: one standard error is 0.7 points, and rounding alone makes two
# trainings drift apart, so a difference below two standard errors means nothing.
ACCURACY_NOISE = 0.014
# Before rounding has had time to grow, both sides must follow the same path.
FIRST_EPOCH_LOSS_TOLERANCE = 1e-3


class SelfAttention(nn.Module):
    """Multi-head self-attention written out, with the softmax as a module of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        heads = self.query_key_value(tokens).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = self.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        result: Tensor = self.output(mixed)
        return result


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        result: Tensor = tokens + self.mlp(tokens)
        return result


class DigitsTransformer(nn.Module):
    """Images (batch, 1, 8, 8) to the scores of ten digits (batch, 10)."""

    def __init__(self, width: int = 32, heads: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=2, padding=1)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        scores: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return scores


def load_images() -> DataSet:
    """The data set: pixels scaled to -1..1, and labels 0..9."""
    data = load_digits()
    split = train_test_split(
        data.images, data.target, test_size=0.25, random_state=SEED, stratify=data.target
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)

    def scaled(images: Tensor) -> Tensor:
        return (images.float() / 8 - 1).unsqueeze(1)

    return DataSet(scaled(train_images), train_labels, scaled(test_images), test_labels)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both trainings, print the verdict, save the picture; returns the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args(argv)

    torch.manual_seed(SEED)
    native, fast = train(DigitsTransformer(), load_images(), arguments.epochs, "digits")
    failures = find_failures(
        native, fast, REQUIRED_ACCURACY, ACCURACY_NOISE, FIRST_EPOCH_LOSS_TOLERANCE
    )
    result = summarize(native, fast, failures, "digits")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    draw(*figure.subplots(1, 2, width_ratios=(2, 1)), native, fast, "Digits: same loss")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)
    print(f"picture: {arguments.output}")
    return result


if __name__ == "__main__":
    raise SystemExit(0 if main()["passed"] else 1)
