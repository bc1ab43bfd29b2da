"""The ops registered with the dispatcher: schemas, fake tensors, autograd, meta, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from tests.tensors import DTYPES, dtype_name, random_tensor

OPS = torch.ops.fastdl
SOFTMAX_KINDS = {"softmax": 0, "log_softmax": 1, "softmin": 2}
LAYER_NORM, RMS_NORM = 0, 1


def parameters(dtype: torch.dtype, requires_grad: bool) -> list[Tensor]:
    return [random_tensor((16,), dtype).requires_grad_(requires_grad) for _ in range(2)]


def softmax_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    shapes = [((3, 16), 1), ((3, 4, 5), 0), ((3, 4, 5), -2), ((), 0), ((0, 3), 1)]
    return [
        (random_tensor(shape, dtype).requires_grad_(requires_grad), dim, dtype, kind)
        for shape, dim in shapes
        for kind in SOFTMAX_KINDS.values()
    ]


def softmax_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    output = OPS.softmax(random_tensor((3, 16), dtype), 1, dtype, 0)
    return [(torch.randn_like(output), output, 1, dtype, kind) for kind in SOFTMAX_KINDS.values()]


def layer_norm_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x = random_tensor((5, 2, 16), dtype).requires_grad_(requires_grad)
    weight, bias = parameters(dtype, requires_grad)
    return [
        (x, [16], weight, bias, 1e-5, LAYER_NORM),
        (x, [16], weight, None, 1e-5, LAYER_NORM),
        (x, [16], None, bias, 1e-5, LAYER_NORM),
        (x, [2, 16], None, None, 1e-5, LAYER_NORM),
        (x, [16], weight, None, 1e-5, RMS_NORM),
        (x, [16], None, None, 1e-5, RMS_NORM),
    ]


def layer_norm_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for x, shape, weight, bias, eps, kind in layer_norm_samples(dtype, False):
        _, statistics = OPS.layer_norm_forward(x, shape, weight, bias, eps, kind)
        grad = torch.randn_like(x)
        for wanted in ([True] * 3, [True, False, False], [False, True, False]):
            wanted = [wanted[0], wanted[1] and weight is not None, wanted[2] and bias is not None]
            samples.append((grad, x, shape, weight, statistics, wanted, dtype, kind))
    return samples


# kernel, stride, padding, dilation, output; and the size that is pooled
POOL_WINDOWS = [
    ([3, 2], [2, 1], [1, 0], [1, 1], [4, 5], (2, 3, 7, 6)),
    ([3], [2], [1], [1], [5], (2, 3, 9)),
    ([], [], [], [], [3, 2], (3, 7, 5)),
    ([20, 20], [1, 1], [0, 0], [1, 1], [1, 2], (2, 3, 20, 21)),
]


POOL_TO_2: list[list[int]] = [[], [], [], [], [2]]


def pool_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    samples = []
    for *windows, shape in POOL_WINDOWS:
        for layout in ("contiguous", "channels_last"):
            x = random_tensor(shape, dtype, layout).requires_grad_(requires_grad)
            samples.append((x, *windows))
    return samples


def pool_results(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """For each sample its output, the offsets and what backward needs to know."""
    results = []
    for x, *windows in pool_samples(dtype, False):
        output, offsets = OPS.max_pool_forward(x, *windows)
        channels_last = not x.is_contiguous()
        results.append((output, offsets, [list(x.shape), *windows], channels_last))
    return results


def max_pool_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(output, offsets, *rest, last) for output, offsets, rest, last in pool_results(dtype)]


def max_pool_indices_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(offsets, *rest, last) for _, offsets, rest, last in pool_results(dtype)]


def avg_pool_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    samples = pool_samples(dtype, requires_grad)
    return [(*sample, divisor == 0, divisor) for sample in samples for divisor in (0, 3)]


def avg_pool_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [(output, *rest, False, 0, last) for output, _, rest, last in pool_results(dtype)]


def adam_samples(dtype: torch.dtype, amsgrad: bool = False) -> list[tuple[Any, ...]]:
    shapes = [(3, 5), (0,), (17,)]
    lists = [[random_tensor(shape, dtype).abs() for shape in shapes] for _ in range(5)]
    steps = [torch.tensor(float(step)) for step in range(3)]
    largest = lists[4] if amsgrad else []
    rate, scale, found = torch.tensor(1e-3), torch.tensor(4.0), torch.tensor(0.0)
    options = (1e-2, 0.9, 0.99, 0.1, 1e-8)
    return [
        (*lists[:4], largest, steps, *options, False, False, None, None, None),
        (*lists[:4], largest, steps, *options, True, True, rate, scale, found),
    ]


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
        ("max_pool", pool_samples),
        ("max_pool_with_indices", pool_samples),
        ("avg_pool", avg_pool_samples),
    ],
    ids=["softmax", "layer_norm", "max_pool", "max_pool_with_indices", "avg_pool"],
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
        ("max_pool_forward", lambda dtype: pool_samples(dtype, False)),
        ("max_pool_indices", max_pool_indices_samples),
        ("max_pool_backward", max_pool_backward_samples),
        ("avg_pool_backward", avg_pool_backward_samples),
    ],
    ids=[
        "softmax_backward",
        "layer_norm_forward",
        "layer_norm_backward",
        "adam_",
        "adam_amsgrad",
        "max_pool_forward",
        "max_pool_indices",
        "max_pool_backward",
        "avg_pool_backward",
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
        (lambda x: OPS.layer_norm(x.int(), [4], None, None, 1e-5, 0), "no kernel"),
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
