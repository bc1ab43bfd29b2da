"""BERT-small, 29 million parameters, and the training step of it that is timed.

Paragraphs of real text, padded to the longest, of which 15 % of the words are hidden and guessed.
Source: Devlin et al., BERT (2018), and Turc et al., Well-Read Students Learn Better (2019), for the
size: blocks that normalise last, learned positions, GELU, dropout of weights and of outputs.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

import fastdl
from benchmarks.harness import Call
from examples.documentation import articles, words

NAME = "bert"
BATCH, LENGTH, VOCABULARY = 16, 128, 30522
SHAPE = f"{BATCH} paragraphs of up to {LENGTH} words"
BEST_NATIVE = "AdamW(fused=True)"
DROPOUT, HIDDEN_SHARE, HIDDEN_WORD = 0.1, 0.15, 0


class Block(nn.Module):
    """Attention and MLP, each within a residual connection and before a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.mlp_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
        x = self.attention_norm(x + self.dropout(mixed))
        result: Tensor = self.mlp_norm(x + self.dropout(self.mlp(x)))
        return result


class Bert(nn.Module):
    """Words (batch, length) to the scores (n, vocabulary) of those at n places of all."""

    def __init__(self, width: int = 512, heads: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(512, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        nn.init.normal_(self.word.weight, std=0.02)

    def forward(self, text: Tensor, padding: Tensor, places: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.word(text) + self.position[: text.shape[1]]))
        for block in self.blocks:
            x = block(x, padding)
        return nn.functional.linear(self.head(x.flatten(0, 1)[places]), self.word.weight)


def make_batch() -> tuple[Tensor, Tensor]:
    """Words as numbers (batch, longest), and where there is none."""
    paragraphs = [words(paragraph)[:LENGTH] for article in articles() for paragraph in article]
    numbers = {word: i + 1 for i, word in enumerate(sorted({w for p in paragraphs for w in p}))}
    chosen = random.Random(0).sample(paragraphs, BATCH)
    rows = [torch.tensor([numbers[word] for word in paragraph]) for paragraph in chosen]
    text = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return text.clamp(min=0), text < 0


def training_step(
    model: nn.Module, text: Tensor, padding: Tensor, fast: bool, fused: bool | None = None
) -> Call:
    """Forward, cross-entropy of hidden words, backward and AdamW; returns the loss."""
    cross_entropy = (fastdl.functional if fast else nn.functional).cross_entropy
    if fast:
        model = fastdl.convert(model)
    adamw = (fastdl.optim if fast else torch.optim).AdamW
    optimizer = adamw(model.parameters(), lr=1e-4, fused=fused)
    real = (~padding).flatten().nonzero().flatten()
    places = real[torch.randperm(len(real))[: round(HIDDEN_SHARE * len(real))]]
    target = text.flatten()[places]
    text = text.flatten().index_fill(0, places, HIDDEN_WORD).view(text.shape)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(model(text, padding, places), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_model() -> nn.Module:
    """The model that is timed, from the same weights every time."""
    torch.manual_seed(0)
    return Bert()


def make_step(fast: bool, best_native: bool) -> Call:
    """The step to time, on the same paragraphs."""
    fused = True if best_native and not fast else None
    return training_step(make_model(), *make_batch(), fast, fused)
