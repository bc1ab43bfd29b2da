"""scaled_dot_product_attention under every mask, against native torch's default call.

The best native setting is is_causal for a mask that is one, a dense boolean mask as one that is
added, a loop over the texts of a padded or packed batch, repeated heads, or float32 for bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from benchmarks import attention_settings as settings
from benchmarks.accuracy import measure_error_ratio
from benchmarks.attention_settings import Arguments, Setting, Size, TensorFunction
from benchmarks.function_case import prepare_compiled, random_inputs
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare
from fastdl import masks

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
# Of all heads, above which the reference in float64 would take gigabytes
MOST_PAIRS_OF_REFERENCE = 1 << 28


def function_of(attention: Callable[..., Tensor], arguments: Arguments) -> TensorFunction:
    """Of query, key, value and a bias that is an input; other arguments are made once."""
    made: dict[tuple[torch.device, torch.dtype], dict[str, Any]] = {}

    def call(query: Tensor, key: Tensor, value: Tensor, *bias: Tensor) -> Tensor:
        place = (query.device, query.dtype)
        if place not in made:
            made[place] = arguments(*place)
        return attention(query, key, value, *bias, **made[place])

    return call


def in_float32(function: TensorFunction) -> TensorFunction:
    """The same from and to another dtype."""
    return lambda *tensors: function(*(t.float() for t in tensors)).to(tensors[0].dtype)


def heads_first(function: TensorFunction) -> TensorFunction:
    """The same of tensors (batch, rows, heads, cols)."""
    return lambda *tensors: function(*(t.transpose(1, 2) for t in tensors)).transpose(1, 2)


def repeated_heads(function: TensorFunction) -> TensorFunction:
    """Of grouped keys and values, each given to every head of its group."""

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        of_a_key = query.shape[1] // key.shape[1]
        return function(query, *(t.repeat_interleave(of_a_key, 1) for t in (key, value)))

    return call


def prepare(function: TensorFunction, direction: str, learned: bool) -> Prepare:
    """Forward without a graph, but for a learned bias; the backward alone; or both, as the unfused
    native path keeps its weights for the backward."""

    def prepared(inputs: Inputs) -> Call:
        tensors = inputs if direction == "forward" else inputs[:-1]
        needs_graph = direction != "forward" or learned
        leaves = [t.detach().requires_grad_(needs_graph) for t in tensors[: 3 + learned]]
        primals = [*leaves, *tensors[len(leaves) :]]
        if direction == "forward":
            return partial(function, *primals)
        if direction == "training":
            return lambda: torch.autograd.grad(function(*primals), leaves, inputs[-1])
        output = function(*primals)
        return partial(torch.autograd.grad, output, leaves, inputs[-1], retain_graph=True)

    return prepared


def functions_of(setting: Setting, dtype: torch.dtype) -> dict[str, TensorFunction]:
    """The candidates."""
    fast, native = fastdl.functional.scaled_dot_product_attention, F.scaled_dot_product_attention
    with_mask: TensorFunction = function_of(native, setting.native)
    functions = {**setting.others}
    if setting.size.kv_heads:
        functions["repeated heads"] = repeated_heads(with_mask)
        fast, native = partial(fast, enable_gqa=True), partial(native, enable_gqa=True)
        with_mask = function_of(native, setting.native)
    if dtype != FLOAT:
        functions["float32"] = in_float32(with_mask)
    if setting.every_pair:
        functions[f"{FASTDL}, every pair"] = fast
    functions |= {FASTDL: function_of(fast, setting.fast), DEFAULT: with_mask}
    if setting.rows_first:
        return {name: heads_first(function) for name, function in functions.items()}
    return functions


def attention_case(setting: Setting, direction: str, dtype: torch.dtype, full_only: bool) -> Case:
    """Least traffic: forward reads query, key, value and mask and writes the output; backward reads
    these, output and its gradient and writes a gradient of each tensor; training does both."""
    size = setting.size
    query, key, value, output = size.shapes()
    if setting.rows_first:
        query, key, value, output = (
            (b, rows, h, d) for b, h, rows, d in (query, key, value, output)
        )
    shapes = [query, key, value, *([setting.bias] if setting.bias else [])]
    elements = [torch.Size(shape).numel() for shape in shapes]
    passes = 2 if direction == "training" else 1
    moved = passes * (sum(elements) + torch.Size(output).numel())
    if direction != "forward":
        shapes.append(output)
        moved += torch.Size(output).numel() + sum(elements[: 3 + setting.learned])
    candidates = {
        name: prepare(function, direction, setting.learned)
        for name, function in functions_of(setting, dtype).items()
    }
    candidates[COMPILED] = prepare_compiled(
        functions_of(setting, dtype)[DEFAULT],
        partial(prepare, direction=direction, learned=setting.learned),
    )
    group = setting.group if dtype == FLOAT else f"{setting.group}, {dtype.itemsize * 8} bits"
    pairs = size.batch * size.heads * size.queries * size.keys
    case = Case(
        op="scaled_dot_product_attention",
        direction=direction,
        shape=f"{size} {setting.label}".strip(),
        dtype=dtype,
        group=f"attention, {group}, {direction}",
        make_inputs=partial(random_inputs, shapes, dtype),
        candidates=candidates,
        bytes_moved=moved * dtype.itemsize + setting.mask_bytes,
        flops=round(setting.share * size.flops(direction)),
        full_only=full_only,
    )
    if not setting.exact or pairs > MOST_PAIRS_OF_REFERENCE:
        return case
    check = partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT])
    return dataclasses.replace(case, error_ratio=check)


def cpu_settings() -> Iterator[Setting]:
    """Of small models; a call takes up to a tenth of a second on two cores."""
    base, long, short = Size(1, 8, 1024, 1024), Size(1, 8, 2048, 2048), Size(4, 8, 512, 512)
    yield from (settings.full(size) for size in (base, Size(4, 12, 197, 197), Size(8, 8, 128, 128)))
    yield from (settings.causal(size) for size in (base, long, short))
    yield from masked_settings(base, long, short)
    yield settings.padded(Size(16, 8, 98, 98), settings.PARAGRAPHS, "paragraphs")
    yield settings.documents(long, settings.ARTICLES)
    yield settings.full(Size(2, 8, 256, 1024), "cross")
    yield settings.full(Size(1, 8, 1024, 77), "cross")  # texts of Stable Diffusion
    yield settings.full(Size(1, 8, 1024, 1024, 40), "odd sizes")
    yield settings.full(Size(1, 8, 1024, 1024, 72), "odd sizes", quick=False)
    yield settings.causal(Size(1, 4, 512, 512, 192, value_dim=128), "odd sizes")  # DeepSeek
    for keys in (1024, 4096, 8192):
        yield settings.full(Size(4, 8, 1, keys), "decoding")
    yield settings.full(Size(1, 32, 1, 4096, 128, kv_heads=8), "decoding")  # Llama 3
    yield settings.full(Size(1, 8, 4096, 4096), quick=False)
    yield settings.causal(Size(1, 8, 4096, 4096), quick=False)
    yield settings.full(Size(1, 8, 1024, 1024, 128), quick=False)
    yield settings.causal(Size(1, 8, 1024, 1024, 128), quick=False)
    yield settings.causal(Size(1, 4, 512, 512, 256), "odd sizes", quick=False)  # Gemma


def gpu_settings() -> Iterator[Setting]:
    """Of large models."""
    base, long, short = (
        Size(4, 16, 2048, 2048, 128), Size(1, 16, 8192, 8192, 128), Size(16, 16, 512, 512)
    )  # fmt: skip
    for size in (base, long, short, Size(64, 12, 197, 197)):
        yield settings.full(size)
        yield settings.causal(size)
    yield from masked_settings(base, long, short)
    yield settings.padded(Size(16, 16, 98, 98), settings.PARAGRAPHS, "paragraphs")
    yield settings.documents(base, settings.ARTICLES)
    yield settings.full(Size(8, 16, 1024, 77), "cross")
    yield settings.full(Size(4, 16, 2048, 2048, 72), "odd sizes")
    yield settings.causal(Size(1, 16, 4096, 4096, 192, value_dim=128), "odd sizes")
    for keys in (1024, 8192, 65536):
        yield settings.full(Size(4, 32, 1, keys, 128, kv_heads=8), "decoding")


def masked_settings(base: Size, long: Size, short: Size) -> Iterator[Setting]:
    """Every kind of mask, bias and layout."""
    rows, heads = base.queries, base.heads
    half = partial(settings.random_pairs, base, 0.5)
    tiles = partial(settings.random_tiles, long, 0.1)
    window = rows // 8 - 1
    yield settings.boolean(
        base, "causal as a tensor", settings.causal_share(base),
        partial(settings.lower_triangle, base),
        others={"is_causal": partial(F.scaled_dot_product_attention, is_causal=True)},
    )  # fmt: skip
    yield settings.boolean(base, "half at random", 0.5, partial(half, ()))
    yield settings.boolean(base, "half at random, of each head", 0.5, partial(half, (heads,)))
    yield settings.boolean(
        long, "a tenth of 64x64 tiles", 0.1, tiles, "a tenth of tiles", every_pair=True
    )
    lengths = [short.keys * share // 8 for share in (8, 5, 2, 1)] * (short.batch // 4)
    yield settings.padded(short, lengths, "half padding")
    yield settings.fast_and_dense(
        "sliding window", long, f"window of {window + 1}, causal",
        settings.causal_share(long, window), masks.sliding_window(window),
    )  # fmt: skip
    yield settings.slanted(base)
    of_heads, of_batch = (1, heads, rows, rows), (base.batch, 1, rows, rows)
    yield Setting("added bias", base, "bias of heads", bias=of_heads)
    yield Setting("added bias", base, "bias of batch", bias=of_batch, quick=False)
    relative = (1, short.heads, short.queries, short.keys)  # as in T5
    yield Setting(
        "bias gradient", base, "learned bias of heads", bias=of_heads, learned=True, quick=False
    )
    yield Setting("bias gradient", short, "learned bias of heads", bias=relative, learned=True)
    yield settings.dropped(settings.full(base))
    yield settings.dropped(settings.causal(base), quick=False)
    yield settings.dropped(settings.padded(short, lengths, "half padding"))
    grouped = Size(
        base.batch, 4 * heads // 2, base.queries // 2, base.keys // 2, kv_heads=heads // 2
    )
    yield settings.causal(grouped, "grouped heads")
    yield settings.full(
        short, "rows first", label="(batch, rows, heads, cols)", rows_first=True, quick=False
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked."""
    first = FLOAT if device == "cpu" else BFLOAT
    chosen = cpu_settings() if device == "cpu" else gpu_settings()
    for number, setting in enumerate(chosen):
        directions = ["forward"] + ["backward"] * (setting.size.queries > 1)
        directions += ["training"] * (setting.learned or not setting.exact)
        for direction in directions:
            for dtype in (FLOAT, BFLOAT, HALF):
                quick = setting.quick and (dtype == first or (number == 0 and dtype == BFLOAT))
                yield attention_case(setting, direction, dtype, not quick)
