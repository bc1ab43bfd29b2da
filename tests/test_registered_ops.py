"""The ops registered with the dispatcher: schemas, fake tensors, autograd, meta, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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
from tests.tensors import DTYPES, dtype_name

OPS = torch.ops.fastdl
SOFTMAX_KINDS = {"softmax": 0, "log_softmax": 1, "softmin": 2}
LAYER_NORM, RMS_NORM = 0, 1
X_TARGET = torch.tensor([1, 2, 3])


traps_on_a_gpu = pytest.mark.cpu_only("the kernel stops there, as torch's own")


def test_every_registered_op_is_checked_here() -> None:
    names = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastdl::")
    }
    assert {name.split(".")[0] for name in names} == {
        "softmax",
        "softmax_backward",
        "layer_norm",
        "layer_norm_forward",
        "layer_norm_backward",
        "adam_",
        "elementwise_loss",
        "elementwise_loss_backward",
        "embedding",
        "embedding_backward",
        "sgd_",
        "adagrad_",
        "rmsprop_",
        "activation",
        "activation_",
        "activation_backward",
        "dropout",
        "dropout_add_layer_norm",
        "dropout_add_layer_norm_forward",
        "dropout_add_layer_norm_backward",
        "grad_norm",
        "scale_grads_",
        "batch_norm",
        "batch_norm_forward",
        "batch_norm_backward",
        "group_norm",
        "group_norm_forward",
        "group_norm_backward",
        "cross_entropy",
        "cross_entropy_gradient",
        "cross_entropy_forward",
        "cross_entropy_backward",
        "nll_loss",
        "nll_loss_forward",
        "nll_loss_backward",
        "linear_cross_entropy",
        "linear_cross_entropy_forward",
        "linear_cross_entropy_backward",
        "max_pool",
        "max_pool_with_indices",
        "max_pool_forward",
        "max_pool_indices",
        "max_pool_backward",
        "avg_pool",
        "avg_pool_backward",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("softmax", softmax_samples),
        ("layer_norm", layer_norm_samples),
        ("elementwise_loss", loss_samples),
        ("embedding", embedding_samples),
        ("activation", activation_samples),
        ("dropout", dropout_samples),
        ("dropout_add_layer_norm", dropout_add_samples),
        ("batch_norm", batch_norm_samples),
        ("group_norm", group_norm_samples),
        ("cross_entropy", cross_entropy_samples),
        ("nll_loss", nll_loss_samples),
        ("linear_cross_entropy", linear_cross_entropy_samples),
        ("max_pool", pool_samples),
        ("max_pool_with_indices", pool_samples),
        ("avg_pool", avg_pool_samples),
    ],
)
def test_opcheck_of_forward_ops(
    name: str,
    samples: Callable[[torch.dtype, bool], list[tuple[Any, ...]]],
    dtype: torch.dtype,
    requires_grad: bool,
) -> None:
    for sample in samples(dtype, requires_grad):
        torch.library.opcheck(getattr(OPS, name).default, sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("softmax_backward", softmax_backward_samples),
        ("layer_norm_forward", lambda dtype: layer_norm_samples(dtype, False)),
        ("layer_norm_backward", layer_norm_backward_samples),
        ("adam_", adam_samples),
        ("adam_", lambda dtype: adam_samples(dtype, amsgrad=True)),
        ("elementwise_loss_backward", loss_backward_samples),
        ("embedding_backward", embedding_backward_samples),
        ("activation_", lambda dtype: activation_samples(dtype, False)),
        ("activation_backward", activation_backward_samples),
        ("dropout_add_layer_norm_forward", lambda dtype: dropout_add_samples(dtype, False)),
        ("dropout_add_layer_norm_backward", dropout_add_backward_samples),
        (
            "sgd_",
            lambda d: optimizer_samples(d, 1, (0.1, 0.9, 0.1, 0.1, False, True, False), False),
        ),
        ("adagrad_", lambda d: optimizer_samples(d, 1, (0.1, 0.1, 0.1, 1e-8, True))),
        ("rmsprop_", lambda d: optimizer_samples(d, 3, (0.1, 0.9, 0.1, 1e-3, 0.9, True))),
        ("grad_norm", grad_norm_samples),
        ("scale_grads_", lambda d: [(grad_norm_samples(d)[0][0], torch.tensor(0.5).double())]),
        ("batch_norm_forward", lambda dtype: batch_norm_samples(dtype, False)),
        ("batch_norm_backward", batch_norm_backward_samples),
        ("group_norm_forward", lambda dtype: group_norm_samples(dtype, False)),
        ("group_norm_backward", group_norm_backward_samples),
        ("cross_entropy_gradient", cross_entropy_gradient_samples),
        ("cross_entropy_forward", lambda dtype: cross_entropy_samples(dtype, False)),
        ("cross_entropy_backward", cross_entropy_backward_samples),
        ("nll_loss_forward", lambda dtype: nll_loss_samples(dtype, False)),
        ("nll_loss_backward", nll_loss_backward_samples),
        ("linear_cross_entropy_forward", linear_cross_entropy_forward_samples),
        ("linear_cross_entropy_backward", linear_cross_entropy_backward_samples),
        ("max_pool_forward", lambda dtype: pool_samples(dtype, False)),
        ("max_pool_indices", max_pool_indices_samples),
        ("max_pool_backward", max_pool_backward_samples),
        ("avg_pool_backward", avg_pool_backward_samples),
    ],
)
def test_opcheck_of_other_ops(
    name: str, samples: Callable[[torch.dtype], list[tuple[Any, ...]]], dtype: torch.dtype
) -> None:
    for sample in samples(dtype):
        torch.library.opcheck(getattr(OPS, name).default, sample)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_meta_tensors_get_the_shape_dtype_and_strides_of_real_ones(dtype: torch.dtype) -> None:
    calls = [
        *((OPS.softmax, sample) for sample in softmax_samples(dtype, False)),
        *((OPS.softmax_backward, sample) for sample in softmax_backward_samples(dtype)),
        *((OPS.layer_norm, sample) for sample in layer_norm_samples(dtype, False)),
        *((OPS.layer_norm_forward, sample) for sample in layer_norm_samples(dtype, False)),
        *((OPS.layer_norm_backward, sample) for sample in layer_norm_backward_samples(dtype)),
        *((OPS.elementwise_loss, sample) for sample in loss_samples(dtype, False)),
        *((OPS.elementwise_loss_backward, sample) for sample in loss_backward_samples(dtype)),
        *((OPS.embedding, sample) for sample in embedding_samples(dtype, False)),
        *((OPS.embedding_backward, sample) for sample in embedding_backward_samples(dtype)),
        *((OPS.activation, sample) for sample in activation_samples(dtype, False)),
        *((OPS.activation_backward, sample) for sample in activation_backward_samples(dtype)),
        *((OPS.dropout, sample) for sample in dropout_samples(dtype, False)),
        *((OPS.dropout_add_layer_norm, sample) for sample in dropout_add_samples(dtype, False)),
        *(
            (OPS.dropout_add_layer_norm_forward, sample)
            for sample in dropout_add_samples(dtype, False)
        ),
        *(
            (OPS.dropout_add_layer_norm_backward, sample)
            for sample in dropout_add_backward_samples(dtype)
        ),
        *((OPS.batch_norm, sample) for sample in batch_norm_samples(dtype, False)),
        *((OPS.batch_norm_forward, sample) for sample in batch_norm_samples(dtype, False)),
        *((OPS.batch_norm_backward, sample) for sample in batch_norm_backward_samples(dtype)),
        *((OPS.group_norm, sample) for sample in group_norm_samples(dtype, False)),
        *((OPS.group_norm_forward, sample) for sample in group_norm_samples(dtype, False)),
        *((OPS.group_norm_backward, sample) for sample in group_norm_backward_samples(dtype)),
        *((OPS.cross_entropy, sample) for sample in cross_entropy_samples(dtype, False)),
        *((OPS.cross_entropy_gradient, s) for s in cross_entropy_gradient_samples(dtype)),
        *((OPS.cross_entropy_forward, sample) for sample in cross_entropy_samples(dtype, False)),
        *((OPS.cross_entropy_backward, s) for s in cross_entropy_backward_samples(dtype)),
        *((OPS.nll_loss_forward, sample) for sample in nll_loss_samples(dtype, False)),
        *((OPS.nll_loss_backward, sample) for sample in nll_loss_backward_samples(dtype)),
        *((OPS.linear_cross_entropy, s) for s in linear_cross_entropy_samples(dtype, False)),
        *(
            (OPS.linear_cross_entropy_backward, s)
            for s in linear_cross_entropy_backward_samples(dtype)
        ),
        *((OPS.max_pool, sample) for sample in pool_samples(dtype, False)),
        *((OPS.max_pool_with_indices, sample) for sample in pool_samples(dtype, False)),
        *((OPS.max_pool_backward, sample) for sample in max_pool_backward_samples(dtype)),
        *((OPS.avg_pool, sample) for sample in avg_pool_samples(dtype, False)),
        *((OPS.avg_pool_backward, sample) for sample in avg_pool_backward_samples(dtype)),
    ]
    for op, sample in calls:
        meta = [v.to("meta") if isinstance(v, Tensor) else v for v in sample]
        got, expected = op(*meta), op(*sample)
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
