"""The list of all cases, and the names by which `--op` chooses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks import (
    bench_activation,
    bench_attention,
    bench_batch_norm,
    bench_conv,
    bench_cross_entropy,
    bench_dropout,
    bench_elementwise_loss,
    bench_embedding,
    bench_layer_norm,
    bench_multi_head_attention,
    bench_optimizers,
    bench_overhead,
    bench_pool,
    bench_softmax,
)
from benchmarks.harness import Case

# One line an op file, in the order of the report
SOURCES: dict[str, Callable[[str], Iterable[Case]]] = {
    "softmax": bench_softmax.cases,
    "layer_norm": bench_layer_norm.cases,
    "batch_norm": bench_batch_norm.cases,
    "conv": bench_conv.cases,
    "attention": bench_attention.cases,
    "multi_head_attention": bench_multi_head_attention.cases,
    "pool": bench_pool.cases,
    "activation": bench_activation.cases,
    "dropout": bench_dropout.cases,
    "cross_entropy": bench_cross_entropy.cases,
    "elementwise_loss": bench_elementwise_loss.cases,
    "embedding": bench_embedding.cases,
    "optimizers": bench_optimizers.cases,
    "overhead": bench_overhead.cases,
}


def select_cases(names: Iterable[str] = (), full: bool = False, device: str = "cpu") -> list[Case]:
    """Cases of these files or single ops ("layer_norm", "rms_norm", "adamw"); all if none named."""
    wanted = {name.lower() for name in names}
    selected = [
        case
        for source, cases in SOURCES.items()
        for case in cases(device)
        if not wanted or source in wanted or case.op.lower() in wanted
    ]
    known = {*SOURCES, *(case.op.lower() for source in SOURCES.values() for case in source(device))}
    if unknown := wanted - known:
        raise ValueError(f"no such op: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return [case for case in selected if full or not case.full_only]
