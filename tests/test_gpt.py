"""A tiny GPT: converted but for its linear layers, and the same training as natively."""

from __future__ import annotations

import torch

import fastdl
from benchmarks.models.gpt import GPT, training_step

VOCABULARY, LENGTH = 211, 24


def tiny_gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(vocabulary=VOCABULARY, length=LENGTH, width=32, heads=4, depth=2)


def test_all_but_linear_layers_are_converted() -> None:
    report = fastdl.report(fastdl.convert(tiny_gpt()))
    assert {kind for _, kind, _ in report.kept} == {"Linear"}
    assert {kind for _, kind in report.replaced} == {"Embedding", "LayerNorm", "GELU"}


def test_five_steps_give_the_same_losses() -> None:
    tokens = torch.randint(VOCABULARY, (3, LENGTH + 1))
    fastdl.reset_hand_overs()
    native = training_step(tiny_gpt(), tokens, fast=False, lr=3e-3)
    fast = training_step(tiny_gpt(), tokens, fast=True, lr=3e-3)
    losses = torch.tensor([(native(), fast()) for _ in range(5)])
    torch.testing.assert_close(losses[:, 1], losses[:, 0], rtol=1e-4, atol=1e-5)
    assert losses[-1, 0] < 0.95 * losses[0, 0], "nothing was learned"
    assert not fastdl.report().hand_overs
