"""MultiheadAttention and its function: torch's results for every option, mask and input."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_as_accurate_as_torch
from tests.outcome import assert_same_outcome

EMBED, HEADS, BATCH, LENGTH, KEYS = 16, 4, 3, 5, 7
LENGTHS = torch.tensor([7, 4, 2])

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 12, "vdim": 20},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "all": {"kdim": 12, "vdim": 20, "add_bias_kv": True, "add_zero_attn": True},
}
PADDINGS = ("none", "bool", "float", "holes", "real floats")
MASKS = ("none", "bool 2", "bool 3", "float 2", "float 3", "causal")


def padding_of(kind: str) -> Tensor | None:
    """True where a key is hidden, or floats."""
    if kind == "none":
        return None
    if kind == "real floats":
        return torch.randn(BATCH, KEYS)
    hidden = torch.arange(KEYS) >= LENGTHS[:, None]
    if kind == "holes":
        hidden |= torch.arange(KEYS) == 1
    return torch.zeros(BATCH, KEYS).masked_fill(hidden, -torch.inf) if kind == "float" else hidden


def mask_of(kind: str) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "causal":
        return nn.Transformer.generate_square_subsequent_mask(KEYS)[:LENGTH]
    shape = (LENGTH, KEYS) if kind.endswith("2") else (BATCH * HEADS, LENGTH, KEYS)
    if kind.startswith("float"):
        return torch.randn(shape)
    hidden = torch.rand(shape) < 0.3
    hidden[..., 0] = False  # a query without keys is NaN for torch, with weights
    return hidden


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, nn.Module]:
    native = nn.MultiheadAttention(EMBED, HEADS, **options).to(dtype)
    for parameter in native.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fastdl.convert(copy.deepcopy(native)), native


def inputs_of(module: nn.Module, batched: bool = True) -> list[Tensor]:
    sizes = ((LENGTH, EMBED), (KEYS, module.kdim), (KEYS, module.vdim))
    if not batched:
        return [torch.randn(size) for size in sizes]
    tensors = [torch.randn(BATCH, *size) for size in sizes]
    return tensors if module.batch_first else [t.transpose(0, 1) for t in tensors]


def results(module: nn.Module, inputs: list[Tensor], **call: Any) -> list[Tensor]:
    """Output, weights if any, and the gradients of inputs and parameters."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    output, weights = module(*leaves, **call)
    total = (output * torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)).sum()
    if weights is not None:
        total = total + weights.square().sum()
    gradients = torch.autograd.grad(total, [*leaves, *module.parameters()])
    return [output, *([] if weights is None else [weights]), *gradients]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_all_masks_give_the_results_of_torch(options: dict[str, Any], batch_first: bool) -> None:
    fast, native = pair(batch_first=batch_first, **options)
    inputs = inputs_of(native)
    for padding, mask, weights in itertools.product(PADDINGS, MASKS, (False, True)):
        call = {
            "key_padding_mask": padding_of(padding),
            "attn_mask": mask_of(mask),
            "need_weights": weights,
            "average_attn_weights": padding != "bool",
        }
        with warnings.catch_warnings(), fastdl.strict():
            warnings.simplefilter("ignore")  # of masks of two dtypes
            actual, expected = results(fast, inputs, **call), results(native, inputs, **call)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(
                one, other, rtol=1e-4, atol=2e-5, msg=lambda text, case=call: f"{case}: {text}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_self_attention_is_as_accurate_as_torchs(dtype: torch.dtype) -> None:
    fast, native = pair(dtype, batch_first=True)
    exact = copy.deepcopy(native).double()
    x = torch.randn(BATCH, 40, EMBED).to(dtype)
    hidden = torch.arange(40) >= torch.tensor([[40], [33], [7]])

    def run(module: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        output, _ = module(x, x, x, key_padding_mask=hidden, need_weights=False)
        return [output, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]

    with fastdl.strict():
        actual = run(fast, x)
    for number, triple in enumerate(
        zip(actual, run(native, x), run(exact, x.double()), strict=True)
    ):
        # The bias of keys has no gradient but rounding: a sum of numbers that cancel.
        if number in (0, 1, 2):
            assert_as_accurate_as_torch(*triple, gradient=number > 0, label=f"{number}")


@pytest.mark.parametrize("masked", [False, True])
def test_inputs_without_batch(masked: bool) -> None:
    fast, native = pair(add_bias_kv=True)
    inputs = inputs_of(native, batched=False)
    for weights, average in itertools.product((False, True), (False, True)):
        call: dict[str, Any] = {"need_weights": weights, "average_attn_weights": average}
        if masked:
            hidden = torch.rand(HEADS, LENGTH, KEYS) < 0.2
            hidden[..., 0] = False
            call |= {"key_padding_mask": torch.arange(KEYS) > 4, "attn_mask": hidden}
        for one, other in zip(
            results(fast, inputs, **call), results(native, inputs, **call), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_hint_that_the_mask_is_causal() -> None:
    x = torch.randn(BATCH, KEYS, EMBED)
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS)
    for options, padding, weights in itertools.product(
        ({}, {"add_zero_attn": True}), ("none", "float"), (False, True)
    ):
        fast, native = pair(batch_first=True, **options)
        call = {"key_padding_mask": padding_of(padding), "need_weights": weights}
        (one, *_), (other, *_) = (
            m(x, x, x, attn_mask=mask, is_causal=True, **call) for m in (fast, native)
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_encoder_and_decoder_use_few_projections_and_no_copies() -> None:
    """The output of a batch_first layer is contiguous, which that of torch is not."""
    fast, native = pair(batch_first=True)
    x, memory = torch.randn(BATCH, LENGTH, EMBED), torch.randn(BATCH, KEYS, EMBED)
    for arguments in ((x, x, x), (x, memory, memory), (x, memory, memory.clone())):
        one, other = (m(*arguments, need_weights=False)[0] for m in (fast, native))
        torch.testing.assert_close(one, other)
        assert one.is_contiguous()
    with torch.profiler.profile() as profile:
        fast(x, x, x, need_weights=False)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::addmm"] == counts["aten::copy_"] == 2  # the biases of both projections
    assert "aten::clone" not in counts and "aten::contiguous" not in counts


def test_dropout_is_that_of_the_weights_returned() -> None:
    fast, _ = pair(batch_first=True, dropout=0.5)
    x = torch.randn(BATCH, 40, EMBED)
    output, weights = fast(x, x, x, average_attn_weights=False)
    assert 0.4 < (weights == 0).double().mean() < 0.6
    v = nn.functional.linear(x, *(p[2 * EMBED :] for p in (fast.in_proj_weight, fast.in_proj_bias)))
    mixed = weights @ v.view(BATCH, 40, HEADS, -1).transpose(1, 2)
    expected = fast.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    without, _ = fast.eval()(x, x, x)
    many = torch.stack([fast.train()(x, x, x, need_weights=False)[0] for _ in range(300)])
    torch.testing.assert_close(many.mean(0), without, rtol=0.3, atol=0.15)


def test_masks_of_two_dtypes_warn_as_in_torch() -> None:
    fast, native = pair()
    inputs = inputs_of(native)
    call = {"key_padding_mask": padding_of("bool"), "attn_mask": mask_of("float 2")}
    assert_same_outcome(lambda: fast(*inputs, **call)[0], lambda: native(*inputs, **call)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"key_padding_mask": torch.zeros(BATCH, KEYS + 1).bool()},
        {"key_padding_mask": torch.zeros(BATCH, KEYS).int()},
        {"key_padding_mask": torch.zeros(KEYS).bool()},
        {"attn_mask": torch.zeros(KEYS, LENGTH).bool()},
        {"attn_mask": torch.zeros(BATCH, LENGTH, KEYS).bool()},
        {"attn_mask": torch.zeros(1, 1, LENGTH, KEYS).bool()},
        {"attn_mask": torch.zeros(LENGTH, KEYS).long()},
        {"is_causal": True},
        {"query": torch.zeros(LENGTH, BATCH, EMBED + 1)},
        {"query": torch.zeros(LENGTH, EMBED)},
        {"query": torch.zeros(1, LENGTH, BATCH, EMBED)},
        {"key": torch.zeros(KEYS, BATCH + 1, EMBED)},
        {"value": torch.zeros(KEYS + 1, BATCH, EMBED)},
    ],
)
@pytest.mark.parametrize("weights", [False, True])
def test_errors_are_those_of_torch(change: dict[str, Any], weights: bool) -> None:
    fast, native = pair()
    names = ("query", "key", "value")
    call = {**dict(zip(names, inputs_of(native), strict=True)), "need_weights": weights, **change}
    outcome = assert_same_outcome(lambda: fast(**call), lambda: native(**call))
    assert outcome.error is not None


def test_strided_nested_inputs_are_those_of_torch() -> None:
    fast, native = (module.eval() for module in pair(batch_first=True))
    x = torch.nested.nested_tensor([torch.randn(n, EMBED) for n in (3, 5)])
    with torch.no_grad():
        one, other = (m(x, x, x, need_weights=False)[0] for m in (fast, native))
    torch.testing.assert_close(one.to_padded_tensor(0), other.to_padded_tensor(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fast_path", [False, True])
def test_transformer_of_torch_gives_the_same_converted(
    training: bool, padded: bool, fast_path: bool
) -> None:
    """In evaluation torch's encoder takes a path of its own, past the modules, if it may."""
    native = nn.Transformer(EMBED, HEADS, 2, 2, 32, dropout=0.0, batch_first=True)
    fast = fastdl.convert(copy.deepcopy(native))
    source, target = torch.randn(BATCH, KEYS, EMBED), torch.randn(BATCH, LENGTH, EMBED)
    hidden = padding_of("bool") if padded else None
    call = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(LENGTH),
        "tgt_is_causal": True,
        "src_key_padding_mask": hidden,
        "memory_key_padding_mask": hidden,
    }
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        with torch.set_grad_enabled(training), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nested tensors
            one, other = (m.train(training)(source, target, **call) for m in (fast, native))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
