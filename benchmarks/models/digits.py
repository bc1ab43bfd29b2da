"""The example that learns handwritten digits: its whole training, and single steps of it."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import fastdl
from benchmarks.disturbance import WAITING_SHARE, seconds_waited
from benchmarks.harness import DEFAULT, FASTDL, Call, Case, Inputs, Prepare, Result, summarize
from examples import digits, side_by_side


def training_result() -> Result:
    """Run the example, which checks what both sides have learned, and time its epochs."""
    waited, start = seconds_waited(), time.perf_counter()
    with TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        outcome = digits.main(["--output", str(Path(directory) / "digits.png")])
    allowed = WAITING_SHARE * (time.perf_counter() - start)
    seconds: dict[str, list[float]] = outcome["epoch_seconds"]
    accuracies = {side: values[-1] for side, values in outcome["accuracies"].items()}
    verdict = "passed" if outcome["passed"] else "FAILED: " + "; ".join(outcome["failures"])
    return Result(
        op="digits",
        direction="training",
        shape=f"epoch of {len(seconds[FASTDL])}",
        dtype="float32",
        group="models, training",
        in_cache=True,
        bytes_moved=0,
        flops=0,
        timings={side: summarize(seconds[side], 1) for side in (FASTDL, DEFAULT)},
        disturbed=seconds_waited() - waited > allowed,
        note=f"{verdict}; held-out accuracy torch {accuracies[DEFAULT]:.2%}, "
        f"fastdl {accuracies[FASTDL]:.2%}",
    )


def prepare_step(fast: bool, fused: bool | None = None) -> Prepare:
    """One training step from the same initial weights on the same batch."""

    def prepare(inputs: Inputs) -> Call:
        images, labels = inputs
        torch.manual_seed(side_by_side.SEED)
        model: torch.nn.Module = digits.DigitsTransformer().to(images.device)
        if fast:
            model = fastdl.convert(model)
        adamw = fastdl.optim.AdamW if fast else torch.optim.AdamW
        settings: dict[str, Any] = {} if fused is None else {"fused": fused}
        side = side_by_side.Side("", model, adamw(model.parameters(), lr=1e-4, **settings))
        return lambda: side.step(images, labels)

    return prepare


def prepare_inference(fast: bool) -> Prepare:
    """Scores of one batch."""

    def prepare(inputs: Inputs) -> Call:
        model: torch.nn.Module = digits.DigitsTransformer().to(inputs[0].device).eval()
        if fast:
            model = fastdl.convert(model)

        def infer() -> Tensor:
            with torch.inference_mode():
                result: Tensor = model(inputs[0])
            return result

        return infer

    return prepare


def model_case(direction: str, candidates: dict[str, Prepare]) -> Case:
    """A batch of the size the example trains with."""

    def make_inputs(device: torch.device) -> Inputs:
        data, batch = digits.load_images(), side_by_side.BATCH_SIZE
        return [data.train_inputs[:batch].to(device), data.train_targets[:batch].to(device)]

    return Case(
        op="digits",
        direction=direction,
        shape=f"batch of {side_by_side.BATCH_SIZE}",
        dtype=torch.float32,
        group=f"models, {direction}",
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=0,
        in_place=True,
    )


def cases() -> list[Case]:
    """A training step and an inference."""
    return [
        model_case(
            "training step",
            {
                FASTDL: prepare_step(fast=True),
                DEFAULT: prepare_step(fast=False),
                "AdamW(fused=True)": prepare_step(fast=False, fused=True),
            },
        ),
        model_case(
            "inference",
            {FASTDL: prepare_inference(fast=True), DEFAULT: prepare_inference(fast=False)},
        ),
    ]


def conversion_report() -> str:
    """What fastdl replaces in the model."""
    return str(fastdl.report(fastdl.convert(digits.DigitsTransformer())))
