"""Models of Hugging Face transformers on fastdl's attention, against their own eager attention."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from fastdl.masks import Mask
from tests.compare import assert_as_accurate_as_torch

transformers = pytest.importorskip("transformers", reason="needs transformers and Python 3.11")

from transformers import masking_utils  # noqa: E402

from fastdl.integrations import transformers as integration  # noqa: E402

VOCABULARY, LENGTH, WINDOW = 97, 23, 6
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "initializer_range": 0.2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertModel", {**COMMON, "initializer_range": 0.2}),
    "GPT2": (
        "GPT2LMHeadModel",
        {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    ),
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": WINDOW}),
    "Gemma2": (
        "Gemma2ForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "sliding_window": WINDOW,
        },
    ),
    "T5": (
        "T5Model",
        {**COMMON, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
}
DECODERS = ("GPT2", "Llama", "Mistral", "Gemma2")
all_models = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    integration.register()
    transformers.logging.set_verbosity_error()


def make(name: str, **changes: Any) -> nn.Module:
    """With all dropout off."""
    torch.manual_seed(5)
    cls, settings = CONFIGS[name]
    config = getattr(transformers, f"{name}Config")(**{**settings, **changes})
    config._attn_implementation = "eager"
    return getattr(transformers, cls)(config).eval()


def batch(name: str, padding: str = "right") -> tuple[dict[str, Tensor], Tensor]:
    """Inputs, and which positions of the output are real."""
    tokens = torch.randint(3, VOCABULARY, (3, LENGTH))
    real = torch.ones(3, LENGTH, dtype=torch.long)
    if padding != "none":
        real[0, :5], real[1, :1] = 0, 0  # fewer than the window, or eager makes NaN in float64
        real = real.flip(1) if padding == "right" else real
    inputs = {"input_ids": tokens * real, "attention_mask": real}
    if name == "T5":
        inputs["decoder_input_ids"] = tokens[:, :7]
        real = real.new_ones(3, 7)
    return inputs, real.bool()


def outputs_and_gradients(
    model: nn.Module, implementation: str, inputs: dict[str, Tensor], real: Tensor
) -> tuple[Tensor, Tensor]:
    model.set_attn_implementation(implementation)
    result = model(**inputs, use_cache=False)
    output = (result.logits if "logits" in result else result.last_hidden_state)[real]
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    parameters = [one for key, one in model.named_parameters() if "pooler" not in key]
    gradients = torch.autograd.grad((output * weights).sum(), parameters)
    return output.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@all_models
@pytest.mark.parametrize("padding", ["none", "right"])
def test_logits_and_gradients_are_as_accurate_as_those_of_eager(name: str, padding: str) -> None:
    model = make(name)
    inputs, real = batch(name, padding)
    native = outputs_and_gradients(model, "eager", inputs, real)
    with fastdl.strict():
        fast = outputs_and_gradients(model, "fastdl", inputs, real)
    exact = outputs_and_gradients(model.double(), "eager", inputs, real)
    for index, triple in enumerate(zip(fast, native, exact, strict=True)):
        assert_as_accurate_as_torch(*triple, gradient=index == 1, label=name)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_gives_the_tokens_of_eager(name: str, cache: str) -> None:
    model = make(name)
    inputs, _ = batch(name, "left")
    options = {"max_new_tokens": 9, "do_sample": False, "cache_implementation": cache}
    tokens = []
    for implementation in ("eager", "fastdl"):
        model.set_attn_implementation(implementation)
        tokens.append(model.generate(**inputs, **options, disable_compile=True))
    assert torch.equal(*tokens)
    assert tokens[0].shape == (3, LENGTH + 9)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_packed_sequences_are_those_alone(name: str) -> None:
    model = make(name)
    model.set_attn_implementation("fastdl")
    sequences = [torch.randint(3, VOCABULARY, (1, length)) for length in (5, 11, 1)]
    positions = torch.cat([torch.arange(tokens.shape[1])[None] for tokens in sequences], 1)
    packed = model(torch.cat(sequences, 1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(tokens).logits for tokens in sequences], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def seen_masks(name: str, **arguments: Tensor) -> list[Any]:
    """What the layers of a model get."""
    seen: list[Any] = []
    original = integration.attention_mask_of

    def spy(**options: Any) -> Any:
        seen.append((original(**options), options["q_length"], options["kv_length"]))
        return seen[-1][0]

    integration.AttentionMaskInterface.register("spied", spy)
    integration.AttentionInterface.register("spied", integration.attention_forward)
    model = make(name)
    model.set_attn_implementation("spied")
    model(**arguments, use_cache=False)
    return seen


@all_models
def test_no_layer_gets_a_tensor_of_all_pairs(name: str) -> None:
    inputs, _ = batch(name, "right")
    seen = seen_masks(name, **inputs)
    assert seen
    for mask, queries, keys in seen:
        assert mask is None or isinstance(mask, Mask)
        if isinstance(mask, Mask):
            parts = mask.parts(3, 4, queries, keys, torch.get_default_device())
            assert parts.allowed is None and parts.bias is None


def test_masks_of_transformers_are_those_of_sdpa() -> None:
    """Also behind a cache, whose first keys a window has dropped."""
    functions = [
        masking_utils.causal_mask_function,
        masking_utils.bidirectional_mask_function,
        masking_utils.sliding_window_causal_mask_function(4),
        masking_utils.sliding_window_bidirectional_mask_function(3),
        masking_utils.or_masks(
            masking_utils.causal_mask_function, masking_utils.sliding_window_overlay(2)
        ),
        masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64)),
    ]
    padding = torch.ones(2, 14, dtype=torch.bool)
    padding[0, :6] = False
    for function in functions:
        for queries, keys, q_offset, kv_offset in ((9, 9, 0, 0), (1, 9, 8, 0), (3, 8, 9, 4)):
            call = {
                "batch_size": 2,
                "q_length": queries,
                "kv_length": keys,
                "q_offset": q_offset,
                "kv_offset": kv_offset,
                "mask_function": function,
                "attention_mask": padding,
            }
            expected = masking_utils.sdpa_mask(**call, allow_is_causal_skip=False)
            mask = integration.attention_mask_of(**call)
            if isinstance(mask, Mask):
                parts = mask.parts(2, 4, queries, keys, torch.get_default_device())
                mask = parts.dense(queries, keys)[0]
            assert mask is not None
            assert torch.equal(mask.expand(2, 1, queries, keys), expected)


def test_models_that_may_not_skip_the_mask_get_a_tensor() -> None:
    mask = integration.attention_mask_of(2, 5, 5, allow_is_causal_skip=False)
    assert isinstance(mask, Tensor) and mask.shape == (2, 1, 5, 5)


def test_learned_sinks_are_refused() -> None:
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match="s_aux"):
        integration.attention_forward(nn.Identity(), q, q, q, None, s_aux=torch.zeros(2))


def test_fastdl_alone_does_not_import_transformers() -> None:
    code = "import fastdl, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
