"""Trains one model twice, with torch alone and with fastdl, and compares the two.

Both sides start from the same weights and see the same batches in the same order. They train in
turns, one epoch each, so that a machine that slows down slows both.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import fastdl

SEED = 0
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 3e-3
Convert = Callable[[nn.Module], nn.Module]
COLORS = {"torch": "#9aa5b1", "fastdl": "#1f6feb"}


@dataclass
class DataSet:
    """Inputs (n, ...), such as images, and what to predict of them: classes (n, ...) as numbers."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def subset(self, count: int | None) -> DataSet:
        """The same with some of the inputs to learn from, picked at random, or with all of them."""
        order = torch.randperm(len(self.train_inputs), generator=torch.manual_seed(SEED))[:count]
        return DataSet(
            self.train_inputs[order], self.train_targets[order], self.test_inputs, self.test_targets
        )


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

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One training step; returns the loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train_epoch(self, data: DataSet, order: Tensor, batch_size: int) -> None:
        """Train on the inputs in this order, then classify the held-out ones (not timed)."""
        self.model.train()
        batches = torch.split(order, batch_size)
        start = time.perf_counter()
        losses = [
            self.step(data.train_inputs[batch], data.train_targets[batch]) for batch in batches
        ]
        self.losses.append(torch.stack(losses).mean().item())
        self.seconds.append(time.perf_counter() - start)
        self.model.eval()
        with torch.inference_mode():
            predicted = self.model(data.test_inputs).argmax(dim=1)
        self.accuracies.append((predicted == data.test_targets).float().mean().item())


def make_sides(model: nn.Module, convert: Convert) -> tuple[Side, Side]:
    """The native training of a model and its fastdl twin, from the same initial weights."""
    twin = convert(copy.deepcopy(model))
    return (
        Side("torch", model, torch.optim.AdamW(model.parameters())),
        Side("fastdl", twin, fastdl.optim.AdamW(twin.parameters())),
    )


def train(
    model: nn.Module,
    data: DataSet,
    epochs: int,
    name: str,
    convert: Convert = fastdl.convert,
    batch_size: int = BATCH_SIZE,
) -> tuple[Side, Side]:
    """Train both sides in turns, one epoch each, and print a line an epoch.

    Args:
        convert: what makes the model of one side that of fastdl.
    """
    for side in make_sides(copy.deepcopy(model), convert):  # first steps of a process cost more
        side.train_epoch(data, torch.arange(4 * batch_size), batch_size)
    native, fast = make_sides(model, convert)
    schedules = {
        side.name: OneCycleLR(side.optimizer, PEAK_LEARNING_RATE, total_steps=epochs + 1)
        for side in (native, fast)
    }
    generator = torch.Generator().manual_seed(SEED)
    print("      |       loss        | held-out accuracy | seconds an epoch")
    print("epoch |    torch   fastdl |    torch   fastdl |   torch  fastdl", flush=True)
    for epoch in tqdm(range(1, epochs + 1), desc=name, unit="epoch", leave=False):
        order = torch.randperm(len(data.train_inputs), generator=generator)
        for side in (native, fast) if epoch % 2 else (fast, native):  # neither always goes first
            side.train_epoch(data, order, batch_size)
            schedules[side.name].step()
        tqdm.write(
            f"{epoch:5} | {native.losses[-1]:8.4f} {fast.losses[-1]:8.4f} "
            f"| {native.accuracies[-1]:8.2%} {fast.accuracies[-1]:8.2%} "
            f"| {native.seconds[-1]:7.3f} {fast.seconds[-1]:7.3f}"
        )
    return native, fast


def find_failures(
    native: Side, fast: Side, required: float, noise: float, loss_tolerance: float
) -> list[str]:
    """What is wrong with the two trainings, in words; empty if nothing is.

    Args:
        required: the accuracy that both must exceed.
        noise: what their accuracies may differ by: two standard errors of the held-out inputs,
            as rounding alone makes two trainings drift apart.
        loss_tolerance: what the losses of the first epoch may differ by, as a share: before
            rounding has had time to grow, both sides must follow the same path.
    """
    failures = [
        f"{side.name} reaches only {side.accuracies[-1]:.2%}, not {required:.0%}"
        for side in (native, fast)
        if side.accuracies[-1] <= required
    ]
    difference = abs(native.accuracies[-1] - fast.accuracies[-1])
    if difference > noise:
        failures.append(f"the accuracies differ by {difference:.2%}")
    drift = abs(fast.losses[0] / native.losses[0] - 1)
    if drift > loss_tolerance:
        failures.append(f"the losses of the first epoch differ by {drift:.1%}")
    return failures


def summarize(native: Side, fast: Side, failures: Sequence[str], what: str) -> dict[str, Any]:
    """Print the verdict; returns the measurements."""
    speed_up = native.epoch_seconds / fast.epoch_seconds
    for side in (native, fast):
        print(
            f"{side.name:>6}: {side.accuracies[-1]:.2%} of the held-out {what}, "
            f"{sum(side.seconds):.2f} s of training, median epoch {side.epoch_seconds:.3f} s"
        )
    print(f"speed-up {speed_up:.2f}x")
    print("PASS" if not failures else "FAIL: " + "; ".join(failures))
    return {
        "passed": not failures,
        "failures": list(failures),
        "speed_up": speed_up,
        "seconds": {side.name: sum(side.seconds) for side in (native, fast)},
        "epoch_seconds": {side.name: side.seconds for side in (native, fast)},
        "losses": {side.name: side.losses for side in (native, fast)},
        "accuracies": {side.name: side.accuracies for side in (native, fast)},
    }


def draw(loss_axes: Axes, time_axes: Axes, native: Side, fast: Side, title: str) -> None:
    """The loss curves of both sides, and the time of each."""
    epochs = range(1, len(native.losses) + 1)
    loss_axes.plot(epochs, native.losses, color=COLORS["torch"], linewidth=5, alpha=0.5)
    loss_axes.plot(epochs, fast.losses, color=COLORS["fastdl"], linewidth=1.5)
    loss_axes.legend(["torch", "fastdl"])
    loss_axes.set(xlabel="epoch", ylabel="training loss", yscale="log", title=title)
    loss_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    seconds = [side.epoch_seconds for side in (native, fast)]
    bars = time_axes.bar(["torch", "fastdl"], seconds, color=list(COLORS.values()))
    time_axes.bar_label(bars, fmt="%.3f s")
    title = f"{seconds[0] / seconds[1]:.2f}x as fast"
    time_axes.set(ylabel="median time of an epoch (s)", title=title)
    time_axes.margins(y=0.1)
