"""Convolution: values and gradients next to torch's, for all settings, layouts and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdl
from tests.compare import assert_same_bits
from tests.conv_calls import check, conv, tensors_of
from tests.tensors import DTYPES, LAYOUTS, dtype_name

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
both_formats = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

# kernel, stride, padding, dilation; groups divide all channels
SETTINGS: list[tuple[Any, Any, Any, Any]] = [
    (1, 1, 0, 1),  # ResNet's bottleneck
    (1, 2, 0, 1),  # its shortcut
    (1, 1, 1, 1),
    (3, 1, 1, 1),
    (3, 1, 0, 1),
    (3, 2, 1, 1),
    (3, 1, 2, 2),  # DeepLab
    (3, 3, 4, 1),
    (7, 2, 3, 1),  # ResNet's stem
    (7, 1, 3, 1),  # ConvNeXt
    (4, 4, 0, 1),  # its stem
    (2, 2, 0, 1),
    (5, 1, 2, 1),
    ((1, 3), 1, (0, 1), 1),  # Inception
    ((3, 1), (2, 1), (1, 0), 1),
    ((2, 4), (1, 3), (1, 0), (3, 1)),
    (3, (1, 2), 1, (1, 2)),
    (4, 1, "same", 1),
    ((2, 3), 1, "same", (3, 2)),
    (3, 2, "valid", 1),
]
# batch, channels in and out of a group, groups, height, width
SHAPES = [
    (2, 3, 5, 1, 11, 13),
    (1, 1, 6, 1, 8, 9),
    (3, 17, 33, 1, 9, 10),
    (2, 1, 1, 19, 10, 17),
    (1, 1, 2, 8, 9, 12),
    (2, 4, 3, 3, 8, 15),
]


@pytest.fixture(autouse=True)
def direct() -> Iterator[None]:
    """Winograd's algorithm has a rule of its own: test_conv_winograd.py."""
    with fastdl.allow_winograd(False):
        yield


@pytest.mark.every_isa
@all_dtypes
@both_formats
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_conv2d(settings: tuple[Any, ...], layout: str, dtype: torch.dtype) -> None:
    kernel, *others = settings
    for shape in SHAPES:
        tensors = tensors_of(shape, kernel, dtype, layout)
        call = conv("conv2d", *others, shape[3])
        check(call, *tensors, label=f"{shape} {settings}")


@pytest.mark.every_isa
@all_dtypes
@pytest.mark.parametrize(
    "settings",
    [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 2), (10, 5, 0, 1), (8, 1, "same", 1), (25, 1, 12, 1)],
    ids=str,
)
def test_conv1d(settings: tuple[Any, ...], dtype: torch.dtype) -> None:
    kernel, *others = settings
    for shape in ((2, 3, 5, 1, 61), (1, 1, 1, 1, 40), (3, 17, 9, 1, 33), (2, 1, 1, 12, 50)):
        tensors = tensors_of(shape, kernel, dtype)
        call = conv("conv1d", *others, shape[3])
        check(call, *tensors, label=f"{shape} {settings}")


@pytest.mark.every_isa
@both_formats
@pytest.mark.parametrize("kernel", [1, 3])
def test_numbers_of_channels_around_vector_and_block_widths(kernel: int, layout: str) -> None:
    call = conv("conv2d", 1, kernel // 2)
    for channels in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 97):
        for shape in ((2, channels, 13, 1, 5, 7), (2, 13, channels, 1, 5, 7)):
            check(call, *tensors_of(shape, kernel, torch.float32, layout))
        tensors = tensors_of((2, 1, 1, channels, 5, 7), 3, torch.float32, layout)
        check(conv("conv2d", 1, 1, 1, channels), *tensors)


@pytest.mark.every_isa
@both_formats
def test_sizes_of_images_around_vector_and_block_widths(layout: str) -> None:
    for width in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130):
        for settings in ((3, 1, 1), (3, 2, 1), (1, 1, 0)):
            for shape in ((2, 5, 6, 1, 3, width), (1, 1, 1, 9, width, 3)):
                tensors = tensors_of(shape, settings[0], torch.float32, layout)
                call = conv("conv2d", *settings[1:], 1, shape[3])
                check(call, *tensors, label=f"{shape} {settings}")


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_of_input_and_weight(layout: str, dtype: torch.dtype) -> None:
    for shape in ((2, 6, 5, 1, 8, 9), (2, 1, 1, 6, 8, 9)):
        x, weight, bias = tensors_of(shape, 3, dtype)
        call = conv("conv2d", 1, 1, 1, shape[3])
        check(call, LAYOUTS[layout](x), weight, bias)
        check(call, x, LAYOUTS[layout](weight), LAYOUTS[layout](bias))
        check(call, LAYOUTS["channels_last"](x), LAYOUTS[layout](weight))


@all_dtypes
@both_formats
def test_unbatched_images_and_sequences(layout: str, dtype: torch.dtype) -> None:
    x, weight, bias = tensors_of((1, 6, 5, 1, 8, 9), 3, dtype, layout)
    check(conv("conv2d", 1, 1), x[0], weight, bias)
    check(conv("conv2d", 2), x[0], weight)
    sequence, weight, bias = tensors_of((1, 6, 5, 1, 20), 3, dtype)
    check(conv("conv1d", 2, 1), sequence[0], weight, bias)


@given(data=st.data())
def test_any_settings_shape_dtype_and_layout(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "sliced"]), "layout")
    kernel = (draw(1, 5, "kernel"), draw(1, 5, "kernel"))
    dilation = (draw(1, 3, "dilation"), draw(1, 3, "dilation"))
    padding = (draw(0, 4, "padding"), draw(0, 4, "padding"))
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    shape = (
        draw(1, 3, "batch"),
        draw(1, 20, "channels"),
        draw(1, 20, "out_channels"),
        draw(1, 4, "groups"),
        *(one + draw(0, 20, "size") for one in least),
    )
    stride = (draw(1, 3, "stride"), draw(1, 3, "stride"))
    torch.manual_seed(draw(0, 1000, "seed"))
    tensors = tensors_of(shape, kernel, dtype, layout)
    if data.draw(st.booleans(), "no bias"):
        tensors.pop()
    call = conv("conv2d", stride, padding, dilation, shape[3])
    check(call, *tensors)


@pytest.mark.usefixtures("threads")
@both_formats
@all_dtypes
def test_larger_images_on_several_threads(layout: str, dtype: torch.dtype) -> None:
    for settings, shape in (
        ((3, 1, 1), (3, 24, 40, 1, 28, 30)),
        ((1, 1, 0), (3, 40, 48, 1, 28, 30)),
        ((7, 2, 3), (2, 3, 16, 1, 64, 60)),
        ((3, 2, 1), (2, 1, 1, 48, 31, 33)),
    ):
        tensors = tensors_of(shape, settings[0], dtype, layout)
        call = conv("conv2d", *settings[1:], 1, shape[3])
        check(call, *tensors, label=f"{settings}")
        first, second = (call(fastdl.functional, *tensors) for _ in range(2))
        assert_same_bits(first, second)


@pytest.mark.parametrize("wanted", range(1, 8))
def test_only_the_gradients_that_are_wanted(wanted: int) -> None:
    tensors = tensors_of((2, 6, 5, 1, 8, 9), 3, torch.float32)
    results = []
    for module in (fastdl.functional, torch.nn.functional):
        own = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
        module.conv2d(*own, padding=1).sin().sum().backward()
        results.append([t.grad for t in own])
    for fast, native in zip(*results, strict=True):
        assert (fast is None) == (native is None)
        torch.testing.assert_close(fast, native, rtol=1e-4, atol=1e-5)
