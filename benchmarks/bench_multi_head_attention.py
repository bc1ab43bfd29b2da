"""multi_head_attention_forward of padded batches, and varlen_attn of packed sequences.

Natively varlen_attn needs a GPU: on the CPU it is held against a packed row with a boolean mask,
and against a loop over the sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.attention_settings import ARTICLES, PARAGRAPHS, Size, TensorFunction
from benchmarks.function_case import PREPARE, random_inputs
from benchmarks.harness import DEFAULT, FASTDL, Case

WIDTH, HEADS = 512, 8
Lengths = tuple[int, ...]


@cache
def padding_mask(lengths: Lengths, device: torch.device) -> Tensor:
    """True where there is no word, as torch's modules have it."""
    return (
        torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]
    )


def self_attention(function: Callable[..., tuple[Tensor, Tensor | None]]) -> TensorFunction:
    """Of padded tokens (batch, length, width) and the four parameters of a layer."""

    def call(tokens: Tensor, *parameters: Tensor) -> Tensor:
        in_weight, out_weight, in_bias, out_bias = parameters
        x = tokens.transpose(0, 1)
        output, _ = function(
            x, x, x, WIDTH, HEADS, in_weight, in_bias, None, None, False, 0.0, out_weight, out_bias,
            key_padding_mask=padding_mask(PARAGRAPHS, x.device), need_weights=False,
        )  # fmt: skip
        return output.transpose(0, 1)

    return call


@cache
def packed_masks(lengths: Lengths, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where sequences begin and end, and what a causal query sees of its own, as a tensor."""
    ends = torch.tensor((0, *lengths), device=device).cumsum(0).int()
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
    return ends, (ids[:, None] == ids).tril()


def by_varlen_attn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """fastdl's function, of tensors (tokens, heads, cols)."""
    ends, _ = packed_masks(ARTICLES, query.device)
    longest = max(ARTICLES)
    output = fastdl.functional.varlen_attn(
        query, key, value, ends, ends, longest, longest, is_causal=True
    )
    assert isinstance(output, Tensor)
    return output


def by_mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Native attention of the whole row with a boolean mask."""
    _, allowed = packed_masks(ARTICLES, query.device)
    whole = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    return F.scaled_dot_product_attention(*whole, attn_mask=allowed)[0].transpose(0, 1)


def in_turn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Native attention of one sequence after the other."""
    parts = [torch.split(tensor, list(ARTICLES)) for tensor in (query, key, value)]
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in one), is_causal=True)
        for one in zip(*parts, strict=True)
    ]
    return torch.cat([output[0].transpose(0, 1) for output in outputs])


def case(
    op: str, label: str, shapes: list[tuple[int, ...]], functions: dict[str, TensorFunction],
    direction: str, flops: int,
) -> Case:  # fmt: skip
    """An output of the shape of the first input."""
    candidates = {name: PREPARE[direction](function) for name, function in functions.items()}
    inputs = shapes if direction == "forward" else [*shapes, shapes[0]]
    elements = sum(torch.Size(shape).numel() for shape in inputs)
    return Case(
        op=op,
        direction=direction,
        shape=label,
        dtype=torch.float32,
        group=f"{op}, {direction}",
        make_inputs=partial(random_inputs, inputs, torch.float32),
        candidates=candidates,
        bytes_moved=4 * elements * (1 if direction == "forward" else 2),
        flops=flops,
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Forward and backward of both, the same on every device."""
    batch, length, head_dim = len(PARAGRAPHS), max(PARAGRAPHS), WIDTH // HEADS
    tokens = (batch, length, WIDTH)
    parameters: list[tuple[int, ...]] = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (3 * WIDTH,), (WIDTH,)]
    packed = (sum(ARTICLES), HEADS, head_dim)
    padded_size, pair = Size(batch, HEADS, length, length, head_dim), Size(1, HEADS, 1, 1, head_dim)
    share = sum(PARAGRAPHS) / (batch * length)
    pairs = sum(n * (n + 1) // 2 for n in ARTICLES)
    for direction in ("forward", "backward"):
        projections = 8 * batch * length * WIDTH**2 * (2 if direction == "backward" else 1)
        yield case(
            "multi_head_attention_forward", f"{batch} paragraphs of up to {length} words",
            [tokens, *parameters],
            {
                FASTDL: self_attention(fastdl.functional.multi_head_attention_forward),
                DEFAULT: self_attention(F.multi_head_attention_forward),
            },
            direction, projections + round(share * padded_size.flops(direction)),
        )  # fmt: skip
        yield case(
            "varlen_attn", f"{len(ARTICLES)} articles, {packed[0]} words, causal", [packed] * 3,
            {FASTDL: by_varlen_attn, DEFAULT: by_mask, "article by article": in_turn},
            direction, pairs * pair.flops(direction),
        )  # fmt: skip
