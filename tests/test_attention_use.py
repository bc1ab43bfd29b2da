"""Attention: what torch must judge, compilers, transforms, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import fastdl
from fastdl import masks
from tests.attention_calls import has_kernel, tensors_of
from tests.compare import assert_same_metadata
from tests.op_samples_attention import attention_samples
from tests.outcome import assert_same_outcome

OPS = torch.ops.fastdl
NAME = "scaled_dot_product_attention"
Q, K, V = tensors_of(5, 7, 8)
MASK = torch.ones(5, 7, dtype=torch.bool)

function = fastdl.functional.scaled_dot_product_attention
native = torch.nn.functional.scaled_dot_product_attention

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def given(*arguments: Any, **options: Any) -> Arguments:
    return arguments, options


def heads(number: int) -> Tensor:
    return torch.ones(2, number, 7, 8)


# Wrong ones, and some that torch takes: the outcome is torch's.
ARGUMENTS: dict[str, Arguments] = {
    "mask of float64": given(Q, K, V, torch.ones(5, 7).double()),
    "mask of bfloat16": given(Q, K, V, torch.ones(5, 7).bfloat16()),
    "mask of ints": given(Q, K, V, torch.ones(5, 7).int()),
    "mask of another size": given(Q, K, V, torch.ones(5, 6) > 0),
    "mask of a larger batch": given(Q[:1], K[:1], V[:1], torch.ones(2, 1, 5, 7) > 0),
    "mask of five dimensions": given(Q, K, V, torch.ones(1, 1, 1, 5, 7)),
    "mask of one dimension": given(Q, K, V, torch.ones(7) > 0),
    "mask of none": given(Q, K, V, torch.tensor(True)),
    "mask that is no tensor": given(Q, K, V, attn_mask=[1.0]),
    "mask and is_causal": given(Q, K, V, MASK, is_causal=True),
    "is_causal that is no bool": given(Q, K, V, is_causal=torch.tensor(True)),
    "is_causal of None": given(Q, K, V, is_causal=None),
    "negative dropout": given(Q, K, V, dropout_p=-0.5),
    "dropout above 1": given(Q, K, V, dropout_p=1.5),
    "dropout of all": given(Q, K, V, dropout_p=1.0),
    "dropout that is no number": given(Q, K, V, dropout_p="0.5"),
    "scale that is no number": given(Q, K, V, scale="1"),
    "scale of zero": given(Q, K, V, scale=0.0),
    "scale of an int": given(Q, K, V, scale=1),
    "positional scale": given(Q, K, V, None, 0.0, False, 1.0),
    "several dtypes": given(Q, K.double(), V),
    "integers": given(Q.int(), K.int(), V.int()),
    "no tensors": given([1.0], K, V),
    "one dimension": given(Q[0, 0, 0], K[0, 0, 0], V[0, 0, 0]),
    "other dimensions": given(Q[0], K, V),
    "other head dims": given(Q, torch.ones(2, 2, 7, 9), V),
    "heads that do not divide": given(heads(6), heads(4), heads(4), enable_gqa=True),
    "heads of key and value": given(heads(6), heads(2), heads(3), enable_gqa=True),
    "heads without enable_gqa": given(heads(6), heads(2), heads(2)),
    "no queries": given(Q[:, :, :0], K, V),
    "no keys": given(Q, K[:, :, :0], V[:, :, :0]),
    "no batch": given(Q[:0], K[:0], V[:0]),
    "head dim of 0": given(Q[..., :0], K[..., :0], V),
    "upper left bias": given(Q, K, V, causal_upper_left(5, 7)),
    "lower right bias": given(Q, K, V, causal_lower_right(5, 7)),
    "lower right bias of another size": given(Q, K, V, causal_lower_right(5, 6)),
    "causal bias and is_causal": given(Q, K, V, causal_upper_left(5, 7), is_causal=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_and_unusual_arguments_have_the_outcome_of_torch(name: str) -> None:
    arguments, options = ARGUMENTS[name]
    assert_same_outcome(
        lambda: function(*arguments, **options),
        lambda: native(*arguments, **options),
        name,
        warnings=False,
    )


def test_a_mask_object_with_is_causal_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"mask & fastdl.masks.causal\(\)"):
        function(Q, K, V, masks.causal(), is_causal=True)


WIDE = torch.ones(1, 1, 3, 257)
REASONS: dict[str, tuple[str, Callable[[], object]]] = {
    "float64": ("float64", lambda: function(Q.double(), K.double(), V.double())),
    "wide heads": ("head_dim", lambda: function(WIDE, WIDE, WIDE)),
    "empty": ("empty", lambda: function(Q[:0], K[:0], V[:0])),
    "all dropped": ("dropout_p", lambda: function(Q, K, V, dropout_p=1.0)),
    "five heads": ("sizes", lambda: function(Q[0], K[0], V[0], MASK[None, None])),
    "a subclass": ("plain", lambda: function(Q, K, V, torch.ones(5, 7).to_sparse())),
    "vmap": ("transform", lambda: func.vmap(function)(Q, K, V)),
}


@pytest.mark.parametrize("name", REASONS)
def test_hand_overs_name_their_reason(name: str) -> None:
    reason, call = REASONS[name]
    with contextlib.suppress(RuntimeError, IndexError):  # torch's own
        call()
    ((op, text, count),) = fastdl.report().hand_overs
    assert op == NAME and reason in text and count == 1


def test_native_torch_computes_while_its_backends_are_restricted() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(function(Q, K, V), native(Q, K, V))
        ((_, reason, _),) = fastdl.report().hand_overs
        assert "sdpa_kernel" in reason
    with fastdl.strict():
        function(Q, K, V)


COMPILED: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.3},
    "bool": {"attn_mask": torch.rand(5, 7) < 0.7},
    "bias": {"attn_mask": torch.randn(2, 1, 7)},
    "lower right": {"attn_mask": causal_lower_right(5, 7)},
    "mask": {"attn_mask": masks.causal(bottom_right=True) & masks.sliding_window(3)},
    "soft cap": {"attn_mask": masks.soft_cap(2.0) & masks.alibi(2)},
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_training_keeps_the_op_and_gives_the_gradients_of_eager(
    name: str, dynamic: bool
) -> None:
    torch.compiler.reset()
    options, codes = COMPILED[name], []

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return function(query, key, value, **options).sin()

    def backend(graph: fx.GraphModule, example: list[Tensor]) -> Any:
        codes.append(graph.code)
        return torch._dynamo.backends.debugging.aot_eager(graph, example)

    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    leaves = [t.clone().requires_grad_() for t in (Q, K, V)]
    for autocast in (False, True):
        with torch.autocast(Q.device.type, dtype=torch.bfloat16, enabled=autocast):
            results = [
                [y, *torch.autograd.grad(y.float().sum(), leaves)]
                for y in (call(*leaves) for call in (compiled, step))
            ]
        for one, other in zip(*results, strict=True):
            assert_same_metadata(one, other, strides=False)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-2 if autocast else 1e-6)
    assert "torch.ops.fastdl.attention" in codes[0]


def test_dropout_and_restricted_backends_are_native_under_compile() -> None:
    for options in ({"dropout_p": 0.5}, {}):
        torch.compiler.reset()
        graphs: list[fx.GraphModule] = []

        def backend(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
            graphs.append(graph)  # noqa: B023
            return graph

        compiled = torch.compile(
            lambda *t: function(*t, **options),  # noqa: B023
            fullgraph=True,
            backend=backend,
        )
        with sdpa_kernel(
            [SDPBackend.MATH] if not options else list(SDPBackend.__members__.values())
        ):
            compiled(Q, K, V)
        assert "fastdl" not in graphs[0].code


def test_the_registered_op_under_transforms_is_native() -> None:
    for sample in attention_samples(torch.float32, False):
        query, key, value, *rest = sample

        def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            output: Tensor = OPS.attention(query, key, value, *rest)[0]  # noqa: B023
            return output

        expected = call(query, key, value)
        batched = func.vmap(call, (0, None, None))(torch.stack([query, query * 2]), key, value)
        torch.testing.assert_close(batched[0], expected, rtol=1e-4, atol=1e-5)
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        grads = torch.autograd.grad(call(*leaves).sin().sum(), leaves)
        by_func = func.grad(lambda *t: call(*t).sin().sum(), (0, 1, 2))(query, key, value)
        torch.testing.assert_close(by_func, grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_biases_and_keeps_boolean_masks(dtype: torch.dtype) -> None:
    for mask in (MASK.tril(), torch.randn(2, 5, 7), masks.sliding_window(2)):
        own = fastdl.strict() if has_kernel(dtype) else contextlib.nullcontext()
        with torch.autocast(Q.device.type, dtype=dtype), own:
            output = function(Q, K, V, mask)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), function(Q, K, V, mask), rtol=2e-2, atol=2e-2)


WRONG: dict[str, tuple[str, Callable[[list[Any]], Any]]] = {
    "three dimensions": ("4 dimensions", lambda a: a.__setitem__(0, a[0][0])),
    "another dtype": ("dtype", lambda a: a.__setitem__(1, a[1].double())),
    "other keys": ("fit", lambda a: a.__setitem__(2, a[2][:, :, :3])),
    "a mask of ints": ("allowed has dtype", lambda a: a.__setitem__(3, a[3].int())),
    "a mask of another size": ("allowed of size", lambda a: a.__setitem__(3, a[3][..., :3])),
    "one end": ("belong", lambda a: a.__setitem__(6, torch.zeros(1, 1, 1, 1).int())),
    "a dropout of 1": ("dropout_p", lambda a: a.__setitem__(14, 1.0)),
    "a negative cap": ("soft_cap", lambda a: a.__setitem__(12, -1.0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_of_the_registered_op_are_an_error(name: str) -> None:
    message, change = WRONG[name]
    sample = list(attention_samples(torch.float32, False)[1])
    change(sample)
    with pytest.raises(RuntimeError, match=message):
        OPS.attention(*sample)
