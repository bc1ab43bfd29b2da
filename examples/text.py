"""Train a small language model on real text twice: with torch alone, and with fastdl.

    python -m examples.text [--output text.png] [--epochs 3] [--rows 50]

Text: the reference of the Python language, which comes with every Python, character by character. A
paragraph is a document, and documents are packed behind each other into rows of 1024 characters. So
attention has a mask: a character sees those before it in its own document, the nearer the better
(ALiBi). Natively that is a tensor of heads x 1024 x 1024 numbers for each row; with fastdl it is

    masks.document(ids) & masks.causal() & masks.alibi(heads)

which takes no such memory, and most of the tiles of scores are never computed. The picture shows
them. Every twelfth article is held out.

The run passes if both sides predict more than the required share of the held-out characters, differ
by less than the noise of that number, and agree on the loss of the first epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

import fastdl
from examples.documentation import articles
from examples.side_by_side import SEED, DataSet, draw, find_failures, summarize, train
from fastdl import masks

LENGTH, HEADS, TILE = 1024, 4, 64
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # other characters are one more
REQUIRED_ACCURACY = 0.4
ACCURACY_NOISE = 0.01
FIRST_EPOCH_LOSS_TOLERANCE = 1e-3

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # of query, key and value


def native_attention(ids: Tensor) -> Attend:
    """Attention within documents (rows, length), with the mask as a tensor."""
    place = torch.arange(ids.shape[1])
    distance = place[:, None] - place
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS)
    seen = (ids[:, None, :, None] == ids[:, None, None]) & (distance >= 0)
    mask = torch.where(seen, -slopes[:, None, None] * distance, -torch.inf)
    return partial(nn.functional.scaled_dot_product_attention, attn_mask=mask)


def fast_attention(ids: Tensor) -> Attend:
    """The same with fastdl."""
    mask = masks.document(ids) & masks.causal() & masks.alibi(HEADS)
    return partial(fastdl.functional.scaled_dot_product_attention, attn_mask=mask)


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        heads = self.query_key_value(self.norm(x)).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        x = x + self.output(attend(query, key, value).transpose(1, 2).flatten(2))
        result: Tensor = x + self.mlp(x)
        return result


class LanguageModel(nn.Module):
    """Characters and documents (rows, 2, length) to scores of what follows (rows, n, length)."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.attention = native_attention
        self.character = nn.Embedding(len(ALPHABET) + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, len(ALPHABET) + 1)

    def forward(self, rows: Tensor) -> Tensor:
        characters, ids = rows.unbind(1)
        attend, x = self.attention(ids), self.character(characters)
        for block in self.blocks:
            x = block(x, attend)
        scores: Tensor = self.scores(self.norm(x))
        return scores.transpose(1, 2)


def with_fastdl(model: nn.Module) -> nn.Module:
    """All of the change."""
    model.attention = fast_attention  # type: ignore[assignment]
    return fastdl.convert(model)


def pack(paragraphs: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows (n, 2, LENGTH) of characters and documents, and the characters that follow."""
    numbers = {character: i for i, character in enumerate(ALPHABET)}
    codes = [[numbers.get(c, len(ALPHABET)) for c in f"\n{p}\n"] for p in paragraphs]
    columns = [
        torch.tensor([value for code in codes for value in part(code)])
        for part in (lambda code: code[:-1], lambda code: code[1:])
    ]
    ids = torch.arange(len(codes)).repeat_interleave(torch.tensor([len(c) - 1 for c in codes]))
    whole = len(ids) // LENGTH * LENGTH
    inputs, targets, documents = (x[:whole].view(-1, LENGTH) for x in (*columns, ids))
    return torch.stack([inputs, documents], 1), targets


def load_text() -> DataSet:
    """Every twelfth article is held out."""
    parts: tuple[list[str], list[str]] = ([], [])
    for i, article in enumerate(articles()):
        parts[i % 12 == 11].extend(article)
    return DataSet(*pack(parts[0]), *pack(parts[1]))


def draw_mask(axes: Axes, ids: Tensor) -> None:
    """The pairs of a row (length,) that count, and the tiles that have some."""
    allowed, _ = (
        (masks.document(ids) & masks.causal())
        .parts(1, 1, LENGTH, LENGTH, "cpu")
        .dense(LENGTH, LENGTH)
    )
    assert allowed is not None
    pairs = allowed[0, 0]
    some = pairs.unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE)).any(3).any(1)
    computed = some.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    axes.imshow(
        (computed.int() + pairs).numpy(), cmap=ListedColormap(["#f3f4f6", "#b6d4fe", "#1f6feb"])
    )
    ticks = range(0, LENGTH + 1, LENGTH // 4)
    axes.set(
        xlabel="key", ylabel="query", xticks=ticks, yticks=ticks,
        title=f"{some.float().mean():.0%} of {TILE}x{TILE} tiles computed",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both trainings, print the verdict, save the picture; returns the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, help="to learn from; all by default")
    parser.add_argument("--output", type=Path, default=Path("text.png"))
    arguments = parser.parse_args(argv)

    text = load_text().subset(arguments.rows)
    print(f"text: {len(text.train_inputs)} rows, {len(text.test_inputs)} held out")
    torch.manual_seed(SEED)
    native, fast = train(LanguageModel(), text, arguments.epochs, "text", with_fastdl, batch_size=1)
    failures = find_failures(
        native, fast, REQUIRED_ACCURACY, ACCURACY_NOISE, FIRST_EPOCH_LOSS_TOLERANCE
    )
    result = summarize(native, fast, failures, "characters")
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.6, 0.8, 1.2))
    draw(*axes[:2], native, fast, "Text: same loss")
    axes[0].set_yscale("linear")
    draw_mask(axes[2], text.train_inputs[0, 1])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)
    print(f"picture: {arguments.output}")
    return result


if __name__ == "__main__":
    raise SystemExit(0 if main()["passed"] else 1)
