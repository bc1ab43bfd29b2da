"""The ops registered with the dispatcher: schemas, fake tensors, autograd, meta, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fastdl
from tests.op_samples import (
    POOL_TO_2,
    activation_backward_samples,
    activation_samples,
    adam_samples,
    avg_pool_backward_samples,
    avg_pool_samples,
    batch_norm_backward_samples,
    batch_norm_samples,
    cross_entropy_backward_samples,
    cross_entropy_gradient_samples,
    cross_entropy_samples,
    dropout_add_backward_samples,
    dropout_add_samples,
    dropout_samples,
    embedding_backward_samples,
    embedding_samples,
    grad_norm_samples,
    group_norm_backward_samples,
    group_norm_samples,
    layer_norm_backward_samples,
    layer_norm_samples,
    linear_cross_entropy_backward_samples,
    linear_cross_entropy_forward_samples,
    linear_cross_entropy_samples,
    loss_backward_samples,
    loss_samples,
    max_pool_backward_samples,
    max_pool_indices_samples,
    nll_loss_backward_samples,
    nll_loss_samples,
    optimizer_samples,
    pool_samples,
    softmax_backward_samples,
    softmax_samples,
)
from tests.op_samples_attention import (
    attention_backward_samples,
    attention_kept_samples,
    attention_mask_tiles_samples,
    attention_samples,
)
from tests.op_samples_conv import conv_backward_samples, conv_samples
from tests.tensors import DTYPES, dtype_name

OPS = torch.ops.fastdl
LAYER_NORM = 0
X_TARGET = torch.tensor([1, 2, 3])

# Ops with a gradient, and the others, each with its samples.
FORWARD_OPS: dict[str, Callable[[torch.dtype, bool], list[tuple[Any, ...]]]] = {
    "softmax": softmax_samples,
    "layer_norm": layer_norm_samples,
    "elementwise_loss": loss_samples,
    "embedding": embedding_samples,
    "activation": activation_samples,
    "dropout": dropout_samples,
    "dropout_add_layer_norm": dropout_add_samples,
    "batch_norm": batch_norm_samples,
    "group_norm": group_norm_samples,
    "cross_entropy": cross_entropy_samples,
    "nll_loss": nll_loss_samples,
    "linear_cross_entropy": linear_cross_entropy_samples,
    "max_pool": pool_samples,
    "max_pool_with_indices": pool_samples,
    "avg_pool": avg_pool_samples,
    "convolution": conv_samples,
    "attention": attention_samples,
}
OTHER_OPS: dict[str, Callable[[torch.dtype], list[tuple[Any, ...]]]] = {
    "softmax_backward": softmax_backward_samples,
    "layer_norm_forward": lambda dtype: layer_norm_samples(dtype, False),
    "layer_norm_backward": layer_norm_backward_samples,
    "adam_": adam_samples,
    "adam_amsgrad": lambda dtype: adam_samples(dtype, amsgrad=True),
    "elementwise_loss_backward": loss_backward_samples,
    "embedding_backward": embedding_backward_samples,
    "activation_": lambda dtype: activation_samples(dtype, False),
    "activation_backward": activation_backward_samples,
    "dropout_add_layer_norm_forward": lambda dtype: dropout_add_samples(dtype, False),
    "dropout_add_layer_norm_backward": dropout_add_backward_samples,
    "sgd_": lambda d: optimizer_samples(d, 1, (0.1, 0.9, 0.1, 0.1, False, True, False), False),
    "adagrad_": lambda d: optimizer_samples(d, 1, (0.1, 0.1, 0.1, 1e-8, True)),
    "rmsprop_": lambda d: optimizer_samples(d, 3, (0.1, 0.9, 0.1, 1e-3, 0.9, True)),
    "grad_norm": grad_norm_samples,
    "scale_grads_": lambda d: [(grad_norm_samples(d)[0][0], torch.tensor(0.5).double())],
    "batch_norm_forward": lambda dtype: batch_norm_samples(dtype, False),
    "batch_norm_backward": batch_norm_backward_samples,
    "group_norm_forward": lambda dtype: group_norm_samples(dtype, False),
    "group_norm_backward": group_norm_backward_samples,
    "cross_entropy_gradient": cross_entropy_gradient_samples,
    "cross_entropy_forward": lambda dtype: cross_entropy_samples(dtype, False),
    "cross_entropy_backward": cross_entropy_backward_samples,
    "nll_loss_forward": lambda dtype: nll_loss_samples(dtype, False),
    "nll_loss_backward": nll_loss_backward_samples,
    "linear_cross_entropy_forward": linear_cross_entropy_forward_samples,
    "linear_cross_entropy_backward": linear_cross_entropy_backward_samples,
    "max_pool_forward": lambda dtype: pool_samples(dtype, False),
    "max_pool_indices": max_pool_indices_samples,
    "max_pool_backward": max_pool_backward_samples,
    "avg_pool_backward": avg_pool_backward_samples,
    "convolution_backward": conv_backward_samples,
    "attention_backward": attention_backward_samples,
    "attention_mask_tiles": attention_mask_tiles_samples,
    "attention_kept": attention_kept_samples,
}

traps_on_a_gpu = pytest.mark.cpu_only("the kernel stops there, as torch's own")


def test_every_registered_op_is_checked_here() -> None:
    names = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastdl::")
    }
    checked = {*FORWARD_OPS, *OTHER_OPS} - {"adam_amsgrad"}
    assert {name.split(".")[0] for name in names} == checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("name", "samples"), FORWARD_OPS.items(), ids=list(FORWARD_OPS))
def test_opcheck_of_forward_ops(
    name: str,
    samples: Callable[[torch.dtype, bool], list[tuple[Any, ...]]],
    dtype: torch.dtype,
    requires_grad: bool,
) -> None:
    for sample in samples(dtype, requires_grad):
        torch.library.opcheck(getattr(OPS, name).default, sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(("name", "samples"), OTHER_OPS.items(), ids=list(OTHER_OPS))
def test_opcheck_of_other_ops(
    name: str, samples: Callable[[torch.dtype], list[tuple[Any, ...]]], dtype: torch.dtype
) -> None:
    op = getattr(OPS, name.replace("amsgrad", "")).default
    for sample in samples(dtype):
        torch.library.opcheck(op, sample)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_meta_tensors_get_the_shape_dtype_and_strides_of_real_ones(dtype: torch.dtype) -> None:
    calls = [
        *((name, sample) for name in FORWARD_OPS for sample in FORWARD_OPS[name](dtype, False)),
        *((name, sample) for name in OTHER_OPS for sample in OTHER_OPS[name](dtype)),
    ]
    for name, sample in calls:
        op = getattr(OPS, name.replace("amsgrad", ""))
        got, expected = op(*tree_map_only(Tensor, lambda t: t.to("meta"), sample)), op(*sample)
        if expected is None:  # of an op in place
            assert got is None
            continue
        pairs = [(got, expected)] if isinstance(got, Tensor) else zip(got, expected, strict=True)
        for one, other in pairs:
            assert one.device.type == "meta"
            assert (one.shape, one.dtype) == (other.shape, other.dtype), f"{op}{sample[1:]}"
            assert one.stride() == other.stride() or one.numel() == 0, f"{op}{sample[1:]}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: OPS.softmax(x, 5, torch.float32, 0), "Dimension out of range"),
        (lambda x: OPS.softmax(x, 0, torch.float32, 7), "kind must be"),
        (lambda x: OPS.softmax(x.int(), 0, torch.int32, 0), "no kernel"),
        (lambda x: OPS.softmax_backward(x[:2], x, 0, torch.float32, 0), "shape"),
        (lambda x: OPS.layer_norm(x, [5], None, None, 1e-5, 0), "normalized_shape"),
        (lambda x: OPS.layer_norm(x, [4], torch.ones(3), None, 1e-5, 0), "shape"),
        (lambda x: OPS.cross_entropy(x, X_TARGET, None, 3, 0, 0.0, x.dtype), "reduction"),
        (lambda x: OPS.cross_entropy(x, X_TARGET[:2], None, 1, 0, 0.0, x.dtype), "fit"),
        (lambda x: OPS.cross_entropy(x, X_TARGET, x[0, :3], 1, 0, 0.0, x.dtype), "shape"),
        pytest.param(
            lambda x: OPS.cross_entropy(x, X_TARGET + 2, None, 1, 0, 0.0, x.dtype),
            "out of bounds",
            marks=traps_on_a_gpu,
        ),
        (lambda x: OPS.cross_entropy_gradient(x, X_TARGET, None, 0, 0, 0.0, x.dtype), "summed"),
        (lambda x: OPS.nll_loss(x, x, None, 1, 0, x.dtype), "indices"),
        (
            lambda x: OPS.linear_cross_entropy(x, x.T, X_TARGET, None, None, 1, 0, 0.0, x.dtype),
            "fit",
        ),
        (lambda x: OPS.layer_norm(x.int(), [4], None, None, 1e-5, 0), "no kernel"),
        (lambda x: OPS.elementwise_loss(x, x[:2], None, None, 1, 0, 0.0), "shape"),
        (lambda x: OPS.elementwise_loss(x, x.double(), None, None, 1, 0, 0.0), "dtype"),
        (lambda x: OPS.elementwise_loss(x, x, x, None, 1, 0, 0.0), "weights"),
        (lambda x: OPS.elementwise_loss(x, x, None, None, 3, 0, 0.0), "reduction must be"),
        (lambda x: OPS.elementwise_loss(x, x, None, None, 1, 5, 0.0), "kind must be"),
        (lambda x: OPS.elementwise_loss(x.int(), x.int(), None, None, 1, 0, 0.0), "no kernel"),
        (
            lambda x: OPS.elementwise_loss_backward(x, x, x, None, None, 1, 0, 0.0, [True] * 2)[0],
            "grad_output",
        ),
        pytest.param(
            lambda x: OPS.embedding(x, torch.tensor([3]), -1),
            "index out of range",
            marks=traps_on_a_gpu,
        ),
        pytest.param(
            lambda x: OPS.embedding(x, torch.tensor([-1]), -1),
            "index out of range",
            marks=traps_on_a_gpu,
        ),
        (lambda x: OPS.embedding(x, torch.tensor([1.0]), -1), "int64 or int32"),
        (lambda x: OPS.embedding(x.t(), torch.tensor([1]), -1), "contiguous rows"),
        pytest.param(
            lambda x: OPS.embedding_backward(x, torch.tensor([0, 1, 3]), 3, -1),
            "out of range",
            marks=traps_on_a_gpu,
        ),
        (lambda x: OPS.embedding_backward(x, torch.tensor([0, 1]), 3, -1), "grad_output"),
        (lambda x: OPS.activation(x, 0.0, 8), "kind must be"),
        (lambda x: OPS.activation(x.int(), 0.0, 0), "no kernel"),
        (lambda x: OPS.activation_(x[:, ::2], 0.0, 0), "gaps"),
        (lambda x: OPS.activation_(x.requires_grad_(), 0.0, 0), "no gradient"),
        (lambda x: OPS.activation_backward(x[:2], x, 0.0, 0), "shape"),
        (lambda x: OPS.dropout(x, 1.0, 0), "p must be"),
        (lambda x: OPS.dropout(x.int(), 0.5, 0), "no kernel"),
        (lambda x: OPS.dropout_add_layer_norm(x, x[:2], [4], None, None, 0, 0, 1e-5), "residual"),
        (lambda x: OPS.dropout_add_layer_norm(x, x, [4], None, None, 1, 0, 1e-5), "p must be"),
        (lambda x: OPS.max_pool(x, [2], [2], [0], [1, 1], [2]), "numbers each"),
        (lambda x: OPS.max_pool(x, [2], [2], [0], [1], [3]), "no pooling"),
        (lambda x: OPS.max_pool(x, [2], [0], [0], [1], [2]), "no pooling"),
        (lambda x: OPS.max_pool(x, [2], [1], [1], [5], [1]), "no pooling"),
        (lambda x: OPS.max_pool(x, [], [], [], [], [0]), "pooling of size"),
        (lambda x: OPS.max_pool(x, [], [], [], [], [1, 1]), "dimensions"),
        (lambda x: OPS.max_pool(x.int(), [], [], [], [], [2]), "no pooling kernel"),
        (lambda x: OPS.avg_pool(x, [2], [2], [0], [2], [1], True, 0), "dilation"),
        (lambda x: OPS.max_pool_backward(x, x.byte(), [3, 4], *POOL_TO_2, False), "be of size"),
        (lambda x: OPS.max_pool_indices(x, [3, 4], *POOL_TO_2, False), "have size"),
        (lambda x: OPS.avg_pool_backward(x, [3, 9], *POOL_TO_2, True, 0, False), "has size"),
    ],
)
def test_wrong_arguments_are_an_error_and_not_a_crash(
    call: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises((RuntimeError, IndexError), match=message):
        call(torch.randn(3, 4))


@pytest.mark.parametrize(
    "change", ["grad", "wanted", "kind", "statistics", "weight", "weight_dtype"]
)
def test_wrong_arguments_of_the_layer_norm_backward_are_an_error(change: str) -> None:
    x, weight = torch.randn(3, 4), torch.ones(4)
    _, statistics = OPS.layer_norm_forward(x, [4], weight, None, 1e-5, LAYER_NORM)
    arguments: dict[str, Any] = {
        "grad_output": x,
        "input": x,
        "normalized_shape": [4],
        "weight": weight,
        "statistics": statistics,
        "wanted": [True, True, False],
        "weight_dtype": torch.float32,
        "kind": LAYER_NORM,
    }
    OPS.layer_norm_backward(**arguments)
    wrong: dict[str, tuple[str, Any]] = {
        "grad": ("grad_output", x[:2]),
        "wanted": ("wanted", [True, True]),
        "kind": ("kind", 9),
        "statistics": ("statistics", statistics[:, :1]),
        "weight": ("weight", torch.ones(3)),
        "weight_dtype": ("weight_dtype", torch.bfloat16),
    }
    name, value = wrong[change]
    with pytest.raises(RuntimeError):
        OPS.layer_norm_backward(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("batch_norm", lambda dtype: batch_norm_samples(dtype, False)),
        ("batch_norm_forward", lambda dtype: batch_norm_samples(dtype, False)),
        ("batch_norm_backward", batch_norm_backward_samples),
        ("group_norm", lambda dtype: group_norm_samples(dtype, False)),
        ("group_norm_forward", lambda dtype: group_norm_samples(dtype, False)),
        ("group_norm_backward", group_norm_backward_samples),
    ],
)
def test_tensors_on_different_devices_are_an_error(
    name: str, samples: Callable[[torch.dtype], list[tuple[Any, ...]]]
) -> None:
    for sample in samples(torch.float32):
        places = [i for i, value in enumerate(sample) if isinstance(value, Tensor)]
        for i, device in itertools.product(places if len(places) > 1 else (), ("meta", "cpu")):
            mixed = list(sample)
            mixed[i] = mixed[i].to(device)
            if mixed[i].device != sample[i].device:
                with pytest.raises(RuntimeError, match="device"):
                    getattr(OPS, name)(*mixed)


def test_lists_of_different_lengths_are_an_error_of_adam() -> None:
    sample = list(adam_samples(torch.float32)[0])
    sample[1] = sample[1][:-1]
    before = [tensor.clone() for tensor in sample[0]]
    with pytest.raises(RuntimeError, match="length"):
        OPS.adam_(*sample)
    for tensor, copy in zip(sample[0], before, strict=True):
        assert torch.equal(tensor, copy)


def test_instruction_set_is_known() -> None:
    assert fastdl.cpu_isa() in ("default", "avx2", "avx512")
