"""Arguments of every op that is registered with the dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tensors import random_tensor

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


def activation_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x = random_tensor((3, 5, 17), dtype, "transposed").requires_grad_(requires_grad)
    return [(x, 0.3, kind) for kind in range(8)]


def activation_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    x, grad = (random_tensor((3, 5, 17), dtype, layout) for layout in ("transposed", "sliced"))
    return [(grad, x, 0.3, kind) for kind in range(8)]


def dropout_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    return [
        (random_tensor((3, 5, 17), dtype, layout).requires_grad_(requires_grad), 0.3, 7)
        for layout in ("contiguous", "transposed")
    ]


def dropout_add_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x, other = (random_tensor((5, 2, 16), dtype).requires_grad_(requires_grad) for _ in range(2))
    weight, bias = parameters(dtype, requires_grad)
    return [
        (x, other, [16], weight, bias, 0.3, 7, 1e-5),
        (x, other, [2, 16], None, None, 0.0, 0, 1e-5),
    ]


def dropout_add_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples: list[tuple[Any, ...]] = []
    for sample in dropout_add_samples(dtype, False):
        _, total, statistics = OPS.dropout_add_layer_norm_forward(*sample)
        _, _, shape, weight, bias, p, seed, _ = sample
        grad, wanted = torch.randn_like(total), [True, True, weight is not None, bias is not None]
        for grad_sum in (None, torch.randn_like(total)):
            samples.append(
                (grad, grad_sum, total, shape, weight, statistics, p, seed, wanted, dtype)
            )
    return samples


def batch_norm_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x, residual = (random_tensor((5, 3, 4), dtype).requires_grad_(requires_grad) for _ in range(2))
    weight, bias = (random_tensor((3,), dtype).requires_grad_(requires_grad) for _ in range(2))
    mean, var = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    images = random_tensor((2, 3, 4, 5), dtype, "channels_last").requires_grad_(requires_grad)
    return [
        (x, None, weight, bias, mean, var, True, 0.1, 1e-5, False),
        (x, residual, weight, bias, mean, var, False, 0.1, 1e-5, True),
        (images, None, None, None, None, None, True, 0.1, 1e-5, True),
    ]


def batch_norm_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in batch_norm_samples(dtype, False):
        x, residual, weight, bias, _, _, training, _, _, relu = sample
        output, statistics = OPS.batch_norm_forward(*sample)
        activated = None if residual is None else output
        for wanted in ([True] * 4, [False, True, False, False]):
            samples.append((torch.randn_like(x), x, activated, weight, bias, statistics, wanted,
                            dtype, training, relu))  # fmt: skip
    return samples


def group_norm_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x = random_tensor((5, 6, 4), dtype).requires_grad_(requires_grad)
    weight, bias = (random_tensor((6,), dtype).requires_grad_(requires_grad) for _ in range(2))
    images = random_tensor((2, 6, 4, 5), dtype, "channels_last").requires_grad_(requires_grad)
    return [(x, 3, weight, bias, 1e-5), (x, 2, None, bias, 1e-5), (images, 1, None, None, 1e-5)]


def group_norm_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in group_norm_samples(dtype, False):
        x, groups, weight, *_ = sample
        _, statistics = OPS.group_norm_forward(*sample)
        for wanted in ([True] * 3, [False, True, False]):
            samples.append((torch.randn_like(x), x, groups, weight, statistics, wanted, dtype))
    return samples


def loss_targets(dtype: torch.dtype) -> list[Tensor]:
    indices = torch.tensor([4, 0, -100, 2, 1, 2])
    return [indices, torch.rand(6, 5).to(dtype)]


def cross_entropy_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x = random_tensor((6, 5), dtype)
    columns, images = random_tensor((2, 5, 3), dtype), random_tensor((2, 3, 5), dtype).movedim(2, 1)
    weight = torch.rand(5).to(dtype)
    indices, soft = loss_targets(dtype)
    samples: list[tuple[Any, ...]] = [
        (x, indices, None, 1, -100, 0.0, torch.float32),
        (x, indices, weight, 2, -100, 0.2, dtype),
        (x, soft, weight, 1, -100, 0.0, dtype),
        (x, indices, None, 0, -100, 0.0, dtype),
        (columns, indices.reshape(2, 3), None, 0, -100, 0.1, dtype),
        (images, indices.reshape(2, 3), weight, 1, -100, 0.0, dtype),
    ]
    return [(s[0].detach().clone().requires_grad_(requires_grad), *s[1:]) for s in samples]


def cross_entropy_gradient_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [sample for sample in cross_entropy_samples(dtype, False) if sample[3] != 0]


def cross_entropy_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in cross_entropy_samples(dtype, False):
        loss, statistics, divisor = OPS.cross_entropy_forward(*sample)
        grad = torch.randn_like(loss)
        samples.append((grad, *sample[:3], statistics, divisor, *sample[4:6]))
    return samples


def nll_loss_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    return [
        (*sample[:5], sample[6])
        for sample in cross_entropy_samples(dtype, requires_grad)
        if not sample[1].is_floating_point() and sample[0].is_contiguous()
    ]


def nll_loss_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in nll_loss_samples(dtype, False):
        loss, divisor = OPS.nll_loss_forward(*sample)
        samples.append((torch.randn_like(loss), *sample[:3], divisor, sample[4]))
    return samples


def linear_cross_entropy_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    x, matrix = random_tensor((6, 8), dtype), random_tensor((5, 8), dtype)
    bias, weight = random_tensor((5,), dtype), torch.rand(5).to(dtype)
    for leaf in (x, matrix, bias):
        leaf.requires_grad_(requires_grad)
    indices, soft = loss_targets(dtype)
    return [
        (x, matrix, indices, bias, weight, 1, -100, 0.1, dtype),
        (x, matrix, indices, None, None, 0, -100, 0.0, torch.float32),
        (x, matrix, soft, None, None, 2, -100, 0.0, dtype),
    ]


def linear_cross_entropy_forward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = linear_cross_entropy_samples(dtype, False)
    wanted = [[True, True, True], [False, False, False], [False, True, False]]
    return [(*sample, w) for sample, w in zip(samples, wanted, strict=True)]


def linear_cross_entropy_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for sample in linear_cross_entropy_samples(dtype, False):
        grad = torch.randn_like(OPS.linear_cross_entropy(*sample))
        samples.append((grad, *sample[:8], [True, True, sample[3] is not None]))
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
    # Adaptive windows, without sizes, have no other divisor.
    divisors = [(sample, divisor) for sample in samples for divisor in (0, 3 * bool(sample[1]))]
    return [(*sample, divisor == 0, divisor) for sample, divisor in divisors]


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


def loss_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    shapes = [(3, 16), (2, 3, 4), (), (0, 3)]
    pairs = [
        [random_tensor(shape, dtype).requires_grad_(requires_grad) for _ in range(2)]
        for shape in shapes
    ]
    weight, pos_weight = random_tensor((16,), dtype).abs(), random_tensor((3, 1), dtype).abs()
    plain = [
        (*pair, None, None, reduction, kind, 0.5)
        for pair in pairs
        for reduction in range(3)
        for kind in range(5)
        if pair[0].numel() > 0 or reduction != 1
    ]
    weighted = [(*pairs[0], weight, pos_weight, reduction, 4, 0.0) for reduction in range(3)]
    columns = [[tensor.detach().t().requires_grad_(requires_grad) for tensor in pairs[0]]]
    return [*plain[::2], *weighted, *((*pair, None, None, 0, 0, 0.0) for pair in columns)]


def loss_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    samples = []
    for number, sample in enumerate(loss_samples(dtype, False)):
        grad = torch.randn_like(OPS.elementwise_loss(*sample))
        wanted = [[True, True], [True, False], [False, True]][number % 3]
        samples.append((grad, *sample, wanted))
    return samples


def embedding_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Any, ...]]:
    weight = random_tensor((5, 16), dtype).requires_grad_(requires_grad)
    return [
        (weight, torch.tensor([[1, 4, 1], [0, 0, 2]]), -1),
        (weight, torch.tensor([3, 2], dtype=torch.int32), 2),
        (weight, torch.tensor(3), 3),
        (weight, torch.zeros(2, 0, dtype=torch.int64), -1),
    ]


def embedding_backward_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return [
        (torch.randn_like(OPS.embedding(*sample)), sample[1], 5, sample[2])
        for sample in embedding_samples(dtype, False)
    ]


def optimizer_samples(
    dtype: torch.dtype, states: int, options: tuple[Any, ...], counted: bool = True
) -> list[tuple[Any, ...]]:
    shapes = [(3, 5), (0,), (17,)]
    lists = [[random_tensor(shape, dtype).abs() for shape in shapes] for _ in range(2 + states)]
    if counted:
        lists.append([torch.tensor(float(step)) for step in range(3)])
    scalars = (torch.tensor(1e-3), torch.tensor(4.0), torch.tensor(0.0), torch.tensor(0.5))
    return [(*lists, *options, None, None, None), (*lists, *options, *scalars)]


def grad_norm_samples(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    grads = [random_tensor(shape, dtype) for shape in [(3, 5), (0,), (17,)]]
    return [(grads, 0.5), (grads, 0.5, torch.tensor(4.0)), (grads[1:2], 1.0)]
