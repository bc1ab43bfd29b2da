"""A GPT of 18 million parameters on a row of packed documents, and the training step of it.

A word sees the words before it in its own document. Natively that is a mask of all pairs of the
row, boolean or one that is added.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from benchmarks.harness import Call
from benchmarks.models.gpt import GPT, training_step
from examples.documentation import articles, words
from fastdl import masks

NAME = "packed"
LENGTH, LONGEST, VOCABULARY = 2048, 512, 8192
SHAPE = f"{LENGTH} words of documents of up to {LONGEST}"
BEST_NATIVE = "added mask, fused"  # the mask as numbers, AdamW(fused=True)


def make_row() -> tuple[Tensor, Tensor]:
    """Words as numbers (1, LENGTH + 1), and the document of each of the first LENGTH (LENGTH,)."""
    texts = [words(" ".join(article))[:LONGEST] for article in articles()]
    random.Random(0).shuffle(texts)
    numbers = {word: i for i, word in enumerate(sorted({w for text in texts for w in text}))}
    row = torch.tensor([numbers[word] for text in texts for word in text])[: LENGTH + 1]
    lengths = torch.tensor([len(text) for text in texts])
    return row[None], torch.arange(len(texts)).repeat_interleave(lengths)[:LENGTH]


def make_model() -> nn.Module:
    """The model that is timed, from the same weights every time."""
    torch.manual_seed(0)
    return GPT(VOCABULARY, LENGTH, depth=4)


def make_step(fast: bool, best_native: bool) -> Call:
    """The step to time, on the same row."""
    row, ids = make_row()
    allowed: Tensor | masks.Mask = (ids[:, None] == ids).tril()
    if fast:
        allowed = masks.document(ids) & masks.causal()
    elif best_native:
        allowed = torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, -torch.inf)
    fused = True if best_native and not fast else None
    return training_step(make_model(), row, fast, fused, attn_mask=allowed)
