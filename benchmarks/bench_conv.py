"""Convolutions of real models, each direction in both memory formats, and whole blocks.

Operations are counted as a direct convolution has them: a faster algorithm may pass the limit. The
best native setting of a contiguous case is channels_last, as a whole model would be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from benchmarks.accuracy import measure_error_ratio
from benchmarks.conv_blocks import BLOCKS
from benchmarks.function_case import (
    TensorFunction,
    prepare_compiled,
    prepare_training,
    random_inputs,
)
from benchmarks.harness import COMPILED, DEFAULT, FASTDL, Call, Case, Inputs, Prepare

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
NCHW, LAST = torch.contiguous_format, torch.channels_last
BATCHES = (8, 16)  # the second in the full run

Layer = tuple[str, int, int, int, int, int, int]

# group, channels, size, out_channels, kernel, stride, groups of the convolution
LAYERS: list[Layer] = [
    ("3x3", 64, 56, 64, 3, 1, 1),  # ResNet-50
    ("3x3", 128, 28, 128, 3, 1, 1),
    ("3x3", 256, 14, 256, 3, 1, 1),
    ("3x3", 512, 7, 512, 3, 1, 1),
    ("3x3 strided", 128, 56, 128, 3, 2, 1),
    ("3x3 strided", 512, 14, 512, 3, 2, 1),
    ("1x1", 64, 56, 256, 1, 1, 1),
    ("1x1", 512, 28, 128, 1, 1, 1),
    ("1x1", 512, 7, 2048, 1, 1, 1),
    ("1x1 strided", 256, 56, 512, 1, 2, 1),
    ("stem", 3, 224, 64, 7, 2, 1),
    ("stem", 3, 224, 96, 4, 4, 1),  # ConvNeXt
    ("depthwise", 32, 112, 32, 3, 1, 32),  # MobileNet
    ("depthwise", 192, 28, 192, 3, 2, 192),
    ("depthwise", 96, 56, 96, 7, 1, 96),  # ConvNeXt
    ("grouped", 128, 56, 128, 3, 1, 32),  # ResNeXt
    ("grouped", 512, 14, 512, 3, 1, 32),
]
SEQUENCES: list[Layer] = [
    ("dense", 256, 800, 256, 3, 2, 1),  # wav2vec 2.0
    ("depthwise", 256, 400, 256, 31, 1, 256),  # Conformer
]
# Without a graph: evaluation after folding
FUSED: list[tuple[str, Layer]] = [
    ("conv2d_relu", ("3x3", 128, 28, 128, 3, 1, 1)),
    ("conv2d_relu", ("1x1", 512, 28, 128, 1, 1, 1)),
    ("conv2d_add", ("1x1", 128, 28, 512, 1, 1, 1)),
    ("conv1d_relu", ("dense", 256, 800, 256, 3, 2, 1)),
    ("conv1d_add", ("dense", 256, 400, 256, 3, 1, 1)),
]


def prepare_inference(function: TensorFunction) -> Prepare:
    """Time the function without a graph, as in evaluation: weights may be kept."""

    def prepare(inputs: Inputs) -> Call:
        leaves = [tensor.detach() for tensor in inputs]
        return partial(function, *leaves)

    return prepare


def prepare_backward(function: TensorFunction, wanted: int) -> Prepare:
    """Time the backward to one of the inputs alone; the last input is the output's gradient."""

    def prepare(inputs: Inputs) -> Call:
        *primals, grad_output = inputs
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(primals)]
        output = function(*leaves)
        return partial(torch.autograd.grad, output, leaves[wanted], grad_output, retain_graph=True)

    return prepare


PREPARE: dict[str, Callable[[TensorFunction], Prepare]] = {
    "forward": prepare_inference,
    "backward input": partial(prepare_backward, wanted=0),
    "backward weight": partial(prepare_backward, wanted=1),
    "training": prepare_training,
}


def in_format(prepare: Prepare, format: torch.memory_format) -> Prepare:
    """The same on tensors in this memory format."""
    return lambda inputs: prepare([t.contiguous(memory_format=format) for t in inputs])


def functions_of(op: str, stride: int, padding: int, groups: int) -> list[TensorFunction]:
    """fastdl's and torch's, of input, weight and what is added."""
    base = getattr(F, op.partition("_")[0])

    def fast(x: Tensor, weight: Tensor, *residual: Tensor) -> Tensor:
        function = getattr(fastdl.functional, op)
        result: Tensor = function(x, weight, *residual, None, stride, padding, 1, groups)
        return result

    def native(x: Tensor, weight: Tensor, *residual: Tensor) -> Tensor:
        output: Tensor = base(x, weight, None, stride, padding, 1, groups)
        if residual:
            return output + residual[0]
        return output.relu() if op.endswith("relu") else output

    return [fast, native]


def layer_case(
    op: str,
    layer: Layer,
    direction: str,
    batch: int,
    format: torch.memory_format,
    dtype: torch.dtype,
    full_only: bool,
) -> Case:
    """One direction of one convolution."""
    group, channels, size, out_channels, kernel, stride, groups = layer
    dims = int(op[4])
    padding = kernel // 2 if kernel % 2 else 0
    output_size = (size + 2 * padding - kernel) // stride + 1
    x, weight, output = (
        (batch, channels, *[size] * dims),
        (out_channels, channels // groups, *[kernel] * dims),
        (batch, out_channels, *[output_size] * dims),
    )
    fast, native = functions_of(op, stride, padding, groups)
    prepare = PREPARE[direction]
    candidates = {FASTDL: prepare(fast), DEFAULT: prepare(native)}
    if format == NCHW and dims == 2:
        candidates["channels_last"] = in_format(candidates[DEFAULT], LAST)
    candidates[COMPILED] = prepare_compiled(native, prepare)
    passes = 3 if direction == "training" else 1
    shapes = [x, weight, *[output] * (op.endswith("add") or direction != "forward")]
    elements = sum(torch.Size(shape).numel() for shape in (x, weight, output, *shapes[3:]))

    def make_inputs(device: torch.device) -> Inputs:
        tensors = random_inputs(shapes, dtype, device)
        tensors[1] *= torch.Size(weight[1:]).numel() ** -0.5  # as initial weights are
        return [t.contiguous(memory_format=format) if dims == 2 else t for t in tensors]

    details = [f"{kernel}x{kernel}" if dims == 2 else f"{kernel}"]
    details += [f"stride {stride}"] * (stride > 1) + [f"{groups} groups"] * (groups > 1)
    layout = " channels_last" if format == LAST else ""
    return Case(
        op=op,
        direction=direction,
        shape=f"{'x'.join(map(str, x))} to {out_channels}, {', '.join(details)}{layout}",
        dtype=dtype,
        group=f"{op} {group} {direction}{layout}",
        make_inputs=make_inputs,
        candidates=candidates,
        bytes_moved=passes * elements * dtype.itemsize,
        flops=passes * 2 * torch.Size(output).numel() * torch.Size(weight[1:]).numel(),
        error_ratio=partial(measure_error_ratio, candidates[FASTDL], candidates[DEFAULT]),
        full_only=full_only,
    )


def prepare_block(
    make: Callable[[], nn.Module], direction: str, fast: bool, format: torch.memory_format
) -> Prepare:
    """The block from the same weights every time, in evaluation or in forward and backward."""

    def prepare(inputs: Inputs) -> Call:
        torch.manual_seed(0)
        block = make().to(inputs[0].device, inputs[0].dtype, memory_format=format)
        x, grad = (tensor.contiguous(memory_format=format) for tensor in inputs)
        if direction == "inference":
            block.eval()
            if fast:
                block = fastdl.convert(block, inference=True)
            return torch.no_grad()(partial(block, x))
        block = fastdl.convert(block) if fast else copy.deepcopy(block)
        leaves: list[Tensor] = [x.detach().requires_grad_(), *block.parameters()]
        return lambda: torch.autograd.grad(block(leaves[0]), leaves, grad)

    return prepare


def block_case(name: str, direction: str, batch: int, full_only: bool) -> Case:
    """A block whose output has the shape of its input."""
    make, channels, size = BLOCKS[name]
    shape = (batch, channels, size, size)
    candidates = {
        FASTDL: prepare_block(make, direction, True, NCHW),
        DEFAULT: prepare_block(make, direction, False, NCHW),
        f"{FASTDL}, channels_last": prepare_block(make, direction, True, LAST),
        "channels_last": prepare_block(make, direction, False, LAST),
    }
    convolutions = [it for it in make().modules() if isinstance(it, nn.Conv2d)]
    weights = sum(conv.weight.numel() for conv in convolutions)
    return Case(
        op="conv_block",
        direction=direction,
        shape=f"{name} {batch}x{channels}x{size}x{size}",
        dtype=FLOAT,
        group=f"blocks, {direction}",
        make_inputs=lambda device: random_inputs([shape, shape], FLOAT, device),
        candidates=candidates,
        bytes_moved=2 * torch.Size(shape).numel() * FLOAT.itemsize,
        flops=(3 if direction == "training" else 1) * 2 * batch * size * size * weights,
        full_only=full_only,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    """Every case, those of the quick run marked. The shapes are the same on a GPU."""
    for direction in PREPARE:
        for op, layers in (("conv2d", LAYERS), ("conv1d", SEQUENCES)):
            for layer in layers:
                for batch in BATCHES:
                    for format in (NCHW, LAST) if op == "conv2d" else (NCHW,):
                        for dtype in (FLOAT, BFLOAT, HALF):
                            quick = batch == BATCHES[0] and dtype == FLOAT
                            quick = quick and direction != "training"
                            yield layer_case(op, layer, direction, batch, format, dtype, not quick)
    for op, layer in FUSED:
        yield layer_case(op, layer, "forward", BATCHES[0], NCHW, FLOAT, full_only=False)
    for name in BLOCKS:
        for direction in ("inference", "training"):
            for batch in BATCHES:
                yield block_case(name, direction, batch, batch != BATCHES[0])
