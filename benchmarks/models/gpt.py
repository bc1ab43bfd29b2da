"""A GPT of 51 million parameters and the training step of it that is timed.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019): blocks that
normalise first, learned positions, GELU, and token embeddings that also make the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import fastdl
from benchmarks.harness import Call

NAME = "gpt"
BATCH, LENGTH, VOCABULARY = 4, 512, 50257
SHAPE = f"{BATCH} texts of {LENGTH} tokens"
BEST_NATIVE = "AdamW(fused=True)"

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # of query, key and value


class SelfAttention(nn.Module):
    """Self-attention of tokens (batch, length, width), causal if not told otherwise."""

    attend: Attend = partial(nn.functional.scaled_dot_product_attention, is_causal=True)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        heads = self.query_key_value(tokens).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = self.attend(query, key, value)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        result: Tensor = tokens + self.mlp(tokens)
        return result


class GPT(nn.Module):
    """Tokens (batch, length) to the scores of the next ones (batch, length, vocabulary)."""

    def __init__(
        self,
        vocabulary: int = VOCABULARY,
        length: int = LENGTH,
        width: int = 512,
        heads: int = 8,
        depth: int = 8,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.blocks(self.token(tokens) + self.position[: tokens.shape[1]]))
        return nn.functional.linear(hidden, self.token.weight)


def training_step(
    model: nn.Module,
    tokens: Tensor,
    fast: bool,
    fused: bool | None = None,
    lr: float = 3e-4,
    **mask: object,
) -> Call:
    """Forward, cross-entropy, backward and AdamW; returns the loss. ``fast``: with fastdl's.

    ``mask``: arguments of attention instead of ``is_causal=True``.
    """
    functional = fastdl.functional if fast else nn.functional
    cross_entropy = functional.cross_entropy
    for module in model.modules():
        if isinstance(module, SelfAttention):
            masked = mask or {"is_causal": True}
            module.attend = partial(functional.scaled_dot_product_attention, **masked)
    if fast:
        model = fastdl.convert(model)
    adamw = (fastdl.optim if fast else torch.optim).AdamW
    optimizer = adamw(model.parameters(), lr=lr, fused=fused)

    def step() -> Tensor:
        optimizer.zero_grad()
        scores = model(tokens[:, :-1])
        loss: Tensor = cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_model() -> nn.Module:
    """The model that is timed, from the same weights every time."""
    torch.manual_seed(0)
    return GPT()


def make_step(fast: bool, best_native: bool) -> Call:
    """The step to time, on the same texts."""
    model = make_model()
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    return training_step(model, tokens, fast, fused=True if best_native and not fast else None)
