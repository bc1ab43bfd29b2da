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
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import fastdl

SEED = 0
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 3e-3
REQUIRED_ACCURACY = 0.95
# 450 held-out digits at 98 %: one standard error is 0.7 points, and rounding alone makes two
# trainings drift apart, so a difference below two standard errors means nothing.
ACCURACY_NOISE = 0.014
# Before rounding has had time to grow, both sides must follow the same path.
FIRST_EPOCH_LOSS_TOLERANCE = 1e-3
COLORS = {"torch": "#9aa5b1", "fastdl": "#1f6feb"}


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


@dataclass
class Digits:
    """The data set: pixels scaled to -1..1, and labels 0..9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls) -> Digits:
        data = load_digits()
        split = train_test_split(
            data.images, data.target, test_size=0.25, random_state=SEED, stratify=data.target
        )
        train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)

        def scaled(images: Tensor) -> Tensor:
            return (images.float() / 8 - 1).unsqueeze(1)

        return cls(scaled(train_images), train_labels, scaled(test_images), test_labels)


@dataclass
class Side:
    """One of the two trainings and what it has measured so far."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def epoch_seconds(self) -> float:
        """The median, so that a pause of the machine does not decide the comparison."""
        return median(self.seconds)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One training step; returns the loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train_epoch(self, digits: Digits, order: Tensor) -> None:
        """Train on the images in this order, then classify the held-out ones (not timed)."""
        batches = torch.split(order, BATCH_SIZE)
        start = time.perf_counter()
        losses = [
            self.step(digits.train_images[batch], digits.train_labels[batch]) for batch in batches
        ]
        self.losses.append(torch.stack(losses).mean().item())
        self.seconds.append(time.perf_counter() - start)
        with torch.inference_mode():
            predicted = self.model(digits.test_images).argmax(dim=1)
        self.accuracies.append((predicted == digits.test_labels).float().mean().item())


def make_sides() -> tuple[Side, Side]:
    """The native training and its fastdl twin, from the same initial weights."""
    torch.manual_seed(SEED)
    model = DigitsTransformer()
    twin = fastdl.convert(copy.deepcopy(model))
    return (
        Side("torch", model, torch.optim.AdamW(model.parameters())),
        Side("fastdl", twin, fastdl.optim.AdamW(twin.parameters())),
    )


def train(native: Side, fast: Side, digits: Digits, epochs: int) -> None:
    """Train both sides in turns, one epoch each, and print a line an epoch."""
    schedules = {
        side.name: OneCycleLR(side.optimizer, PEAK_LEARNING_RATE, total_steps=epochs + 1)
        for side in (native, fast)
    }
    generator = torch.Generator().manual_seed(SEED)
    print("      |       loss        | held-out accuracy | seconds an epoch")
    print("epoch |    torch   fastdl |    torch   fastdl |   torch  fastdl", flush=True)
    for epoch in tqdm(range(1, epochs + 1), desc="digits", unit="epoch", leave=False):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for side in (native, fast) if epoch % 2 else (fast, native):  # neither always goes first
            side.train_epoch(digits, order)
            schedules[side.name].step()
        tqdm.write(
            f"{epoch:5} | {native.losses[-1]:8.4f} {fast.losses[-1]:8.4f} "
            f"| {native.accuracies[-1]:8.2%} {fast.accuracies[-1]:8.2%} "
            f"| {native.seconds[-1]:7.3f} {fast.seconds[-1]:7.3f}"
        )


def find_failures(native: Side, fast: Side) -> list[str]:
    """What is wrong with the two trainings, in words; empty if nothing is."""
    failures = [
        f"{side.name} reaches only {side.accuracies[-1]:.2%}, not {REQUIRED_ACCURACY:.0%}"
        for side in (native, fast)
        if side.accuracies[-1] <= REQUIRED_ACCURACY
    ]
    difference = abs(native.accuracies[-1] - fast.accuracies[-1])
    if difference > ACCURACY_NOISE:
        failures.append(f"the accuracies differ by {difference:.2%}")
    drift = abs(fast.losses[0] / native.losses[0] - 1)
    if drift > FIRST_EPOCH_LOSS_TOLERANCE:
        failures.append(f"the losses of the first epoch differ by {drift:.1%}")
    return failures


def save_picture(native: Side, fast: Side, path: Path) -> None:
    """Loss curves of both sides, and the time of each."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, time_axes = figure.subplots(1, 2, width_ratios=(2, 1))
    epochs = range(1, len(native.losses) + 1)
    loss_axes.plot(epochs, native.losses, color=COLORS["torch"], linewidth=5, alpha=0.5)
    loss_axes.plot(epochs, fast.losses, color=COLORS["fastdl"], linewidth=1.5)
    loss_axes.legend(["torch", "fastdl"])
    loss_axes.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Digits: same loss")
    loss_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    seconds = [side.epoch_seconds for side in (native, fast)]
    bars = time_axes.bar(["torch", "fastdl"], seconds, color=list(COLORS.values()))
    time_axes.bar_label(bars, fmt="%.3f s")
    title = f"{seconds[0] / seconds[1]:.2f}x as fast"
    time_axes.set(ylabel="median time of an epoch (s)", title=title)
    time_axes.margins(y=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both trainings, print the verdict, save the picture; returns the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args(argv)

    digits = Digits.load()
    warm_up = make_sides()  # the first steps of a process pay for thread pools and code loading
    for side in warm_up:
        side.train_epoch(digits, torch.arange(4 * BATCH_SIZE))
    native, fast = make_sides()
    train(native, fast, digits, arguments.epochs)

    failures = find_failures(native, fast)
    seconds = {side.name: sum(side.seconds) for side in (native, fast)}
    speed_up = native.epoch_seconds / fast.epoch_seconds
    for side in (native, fast):
        print(
            f"{side.name:>6}: {side.accuracies[-1]:.2%} of the held-out digits, "
            f"{seconds[side.name]:.2f} s of training, median epoch {side.epoch_seconds:.3f} s"
        )
    print(f"speed-up {speed_up:.2f}x")
    print("PASS" if not failures else "FAIL: " + "; ".join(failures))
    save_picture(native, fast, arguments.output)
    print(f"picture: {arguments.output}")
    return {
        "passed": not failures,
        "failures": failures,
        "speed_up": speed_up,
        "seconds": seconds,
        "epoch_seconds": {side.name: side.seconds for side in (native, fast)},
        "losses": {side.name: side.losses for side in (native, fast)},
        "accuracies": {side.name: side.accuracies for side in (native, fast)},
    }


if __name__ == "__main__":
    raise SystemExit(0 if main()["passed"] else 1)
