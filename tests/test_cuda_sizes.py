"""The functions on GPUs for sizes that need each of the kernels, values next to torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from tests import test_layer_norm, test_rms_norm
from tests.compare import assert_same_bits, check_function
from tests.cuda import SLEEP_CYCLES, needs_gpu, on_gpu
from tests.tensors import DTYPES, dtype_name, random_tensor
from tests.test_softmax import along

pytestmark = [needs_gpu, pytest.mark.usefixtures("no_default_device")]
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
two_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
all_ops = pytest.mark.parametrize("op", ["softmax", "log_softmax", "layer_norm", "rms_norm"])

# A warp has rows of up to 128 or 256 vectors of 16 bytes, a block up to 6144 vectors, a cluster of
# blocks up to 8 times as many; longer rows are split. Few rows are spread wider than many.
SHORT = (1, 2, 3, 5, 8, 31, 32, 33, 127, 128, 129, 255, 257, 511, 512, 513, 1023, 1024, 1025)
MIDDLE = (1030, 2047, 2048, 2049, 3072, 4095, 4096, 4097, 8191, 8192, 8193)
LONG = (12288, 12289, 16384, 24575, 24577, 32000, 49151, 49153, 50257, 65535, 65536, 65537)
LONGER = (98_305, 128_256, 196_607, 196_609, 262_144, 300_000, 393_217)

WIDE_GRID = 70_001  # above the 65535 blocks that the second dimension of a grid may have


def check_rows(op: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """One op over the last dimension of one shape, on the GPU."""
    x = on_gpu(lambda: random_tensor(shape, dtype, layout))
    label = f"{shape} {layout}"
    if op in ("softmax", "log_softmax"):
        check_function(along(op, -1), 3 * x if layout == "contiguous" else x, label=label)
        return
    weight, bias = on_gpu(lambda: [random_tensor(shape[-1:], dtype, layout) for _ in range(2)])
    # A large eps: rows of few elements would otherwise magnify rounding errors by chance.
    if op == "layer_norm":
        check_function(test_layer_norm.over(shape[-1:], 0.5), x, weight, bias, label=label)
    else:
        check_function(test_rms_norm.over(shape[-1:], 0.5), x, weight, label=label)


@all_ops
@all_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "unaligned"])
def test_short_and_middle_rows(op: str, dtype: torch.dtype, layout: str) -> None:
    for cols in SHORT + MIDDLE:
        if (op, cols) != ("layer_norm", 1):  # nothing but rounding is left of a single element
            check_rows(op, (37, cols), dtype, layout)


@all_ops
@all_dtypes
def test_long_rows(op: str, dtype: torch.dtype) -> None:
    for cols in LONG:
        check_rows(op, (7, cols), dtype, "contiguous")


@all_ops
@two_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "unaligned", "sliced"])
def test_longer_rows_than_a_block_can_hold(op: str, dtype: torch.dtype, layout: str) -> None:
    for cols in LONGER:
        check_rows(op, (5, cols), dtype, layout)


@all_ops
@two_dtypes
@pytest.mark.parametrize("cols", [1024, 12_289, 65_537])
def test_as_many_rows_as_keep_every_multiprocessor_busy(
    op: str, dtype: torch.dtype, cols: int
) -> None:
    for rows in (1, 66, 132, 133, 300):
        if rows > 1 or op not in ("layer_norm", "rms_norm"):
            check_rows(op, (rows, cols), dtype, "contiguous")


@all_ops
@two_dtypes
@pytest.mark.parametrize("cols", [2, 33, 257])
def test_very_many_rows(op: str, dtype: torch.dtype, cols: int) -> None:
    check_rows(op, (WIDE_GRID, cols), dtype, "contiguous")


@pytest.mark.sanitizer_small
@all_ops
@pytest.mark.parametrize("cols", [3, 33, 1025, 7001, 66_001])
def test_one_size_for_each_kernel(op: str, cols: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_rows(op, (3, cols), dtype, "unaligned")


@pytest.mark.sanitizer_small
@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 67, 9), (1, 9001, 2)], ids=str)
def test_one_size_for_each_kernel_of_columns(shape: tuple[int, ...]) -> None:
    check_function(along("softmax", 1), on_gpu(lambda: random_tensor(shape)), label=str(shape))


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "softmin"])
@two_dtypes
def test_columns_of_every_length(function: str, dtype: torch.dtype) -> None:
    for size in (1, 2, 3, 7, 31, 64, 65, 257, 1023, 3583, 3585, 7167, 7169, 20_001):
        for outer, inner in ((1, 1), (3, 2), (2, 5), (2, 64), (1, 131)):
            if size * inner <= 2**20:
                x = on_gpu(lambda s=(outer, size, inner): random_tensor(s, dtype))
                check_function(along(function, 1), 3 * x, label=f"({outer}, {size}, {inner})")


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@two_dtypes
def test_very_many_columns(function: str, dtype: torch.dtype) -> None:
    for shape in ((2, 3, WIDE_GRID), (WIDE_GRID, 3, 2), (WIDE_GRID, 5, 1), (3, 70, 4099)):
        x = on_gpu(lambda s=shape: random_tensor(s, dtype))
        check_function(along(function, 1), x, label=str(shape))


@two_dtypes
@pytest.mark.parametrize(
    "shape", [(100_003, 33), (30_011, 768), (4099, 4096), (257, 20_011)], ids=str
)
def test_gradients_of_weights_are_the_same_bits_in_every_run(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x, grad = on_gpu(lambda: [random_tensor(shape, dtype) for _ in range(2)])
    parameters = on_gpu(lambda: [random_tensor(shape[1:], dtype) for _ in range(2)])
    leaves = [tensor.requires_grad_() for tensor in (x, *parameters)]

    def gradients() -> list[Tensor]:
        layer = fastdl.functional.layer_norm(x, shape[1:], *parameters)
        rms = fastdl.functional.rms_norm(x, shape[1:], parameters[0], 1e-6)
        return [
            *torch.autograd.grad(layer, leaves, grad),
            *torch.autograd.grad(rms, leaves[:2], grad),
        ]

    first = gradients()
    other_work = torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(other_work):  # takes multiprocessors away: another order of blocks
            torch.cuda._sleep(SLEEP_CYCLES // 100)
            torch.rand(1 << 22, device="cuda").sort()
        for one, other in zip(first, gradients(), strict=True):
            assert_same_bits(one, other)


@pytest.mark.slow
@all_ops
def test_more_than_2_to_the_31_elements_with_gradients(op: str) -> None:
    rows, cols = 65_537, 32_800
    x, grad = (torch.empty(rows, cols, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    assert x.normal_().numel() > 2**31 < grad.normal_().numel()
    argument = -1 if op.endswith("softmax") else (cols,)
    some = [0, 1, 40_000, rows - 2, rows - 1]
    results = []
    for module, part in ((fastdl.functional, slice(None)), (torch.nn.functional, some)):
        leaf = x[part].detach().requires_grad_()
        output = getattr(module, op)(leaf, argument)
        (dx,) = torch.autograd.grad(output, leaf, grad[part])
        results.append((output.detach(), dx))
    for fast, native in zip(*results, strict=True):
        torch.testing.assert_close(fast[some], native)
