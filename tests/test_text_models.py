"""The benchmark's models of text: converted, and the same training as natively."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastdl
from benchmarks.models import bert, packed
from benchmarks.models.gpt import GPT, training_step


def tiny_bert() -> nn.Module:
    torch.manual_seed(1)
    return bert.Bert(width=32, heads=4, depth=2).eval()  # no dropout


def test_attention_of_bert_is_converted() -> None:
    report = fastdl.report(fastdl.convert(tiny_bert()))
    assert {kind for _, kind, _ in report.kept} == {"Linear", "NonDynamicallyQuantizableLinear"}
    assert "MultiheadAttention" in {kind for _, kind in report.replaced}


def test_bert_trains_as_natively() -> None:
    text, padding = bert.make_batch()
    losses = []
    fastdl.reset_hand_overs()
    for fast in (False, True):
        torch.manual_seed(2)
        step = bert.training_step(tiny_bert(), text[:4, :32], padding[:4, :32], fast)
        losses.append([step().item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1][2] < losses[1][0]
    assert not fastdl.report().hand_overs


def test_packed_documents_train_as_natively() -> None:
    losses = []
    row, ids = packed.make_row()
    masks = {
        False: (ids[:, None] == ids).tril()[:700, :700],
        True: fastdl.masks.document(ids[:700]) & fastdl.masks.causal(),
    }
    for fast, mask in masks.items():
        torch.manual_seed(1)
        model = GPT(packed.VOCABULARY, length=700, width=32, heads=4, depth=2)
        step = training_step(model, row[:, :701], fast, attn_mask=mask)
        losses.append([step().item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
