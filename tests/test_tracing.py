"""torch.compile, torch.export, torch.fx and torch.jit see fastdl's modules as they see torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fastdl
from tests.cases import FunctionCase, all_cases
from tests.outcome import assert_alike

SHAPE = (3, 5, 7, 8)


class Adapted(nn.Module):
    """A module that takes something else than one float tensor, as one that takes x."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inner, x)


def loss(name: str, **options: str) -> nn.Module:
    """A loss whose target depends on x, and which has x's shape."""
    inner = getattr(fastdl.nn, name)(**options)
    return Adapted(inner, lambda module, x: x * (module(x, 1.5 * x) / x.numel()))


def class_loss(inner: nn.Module) -> nn.Module:
    """A loss of class indices, of rows of x, and which has x's shape."""
    return Adapted(inner, lambda m, x: x * m(x.flatten(0, 2), x.flatten(0, 2).argmax(1) // 3))


def embedding() -> nn.Module:
    """The rows of a table, one for each entry of the third dimension of x."""
    inner = fastdl.nn.Embedding(5, 8)
    return Adapted(inner, lambda m, x: x * m(torch.arange(x.shape[2], device=x.device) % 5))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Softmax": lambda: fastdl.nn.Softmax(dim=-1),
    "LogSoftmax": lambda: fastdl.nn.LogSoftmax(dim=1),
    "Softmin": lambda: fastdl.nn.Softmin(dim=0),
    "LayerNorm": lambda: fastdl.nn.LayerNorm(8),
    "LayerNorm no bias": lambda: fastdl.nn.LayerNorm(8, bias=False),
    "BatchNorm1d": lambda: fastdl.nn.BatchNorm1d(5, affine=False),
    "BatchNorm2d": lambda: fastdl.nn.BatchNorm2d(5),
    "BatchNorm3d": lambda: fastdl.nn.BatchNorm3d(5),
    "GroupNorm": lambda: fastdl.nn.GroupNorm(1, 5),
    "Sequential": lambda: fastdl.nn.Sequential(fastdl.nn.BatchNorm2d(5), nn.ReLU()),
    "RMSNorm": lambda: fastdl.nn.RMSNorm((7, 8)),
    "MSELoss": lambda: loss("MSELoss"),
    "L1Loss": lambda: loss("L1Loss", reduction="none"),
    "SmoothL1Loss": lambda: loss("SmoothL1Loss"),
    "HuberLoss": lambda: loss("HuberLoss", reduction="sum"),
    "BCEWithLogitsLoss": lambda: loss("BCEWithLogitsLoss"),
    "CrossEntropyLoss": lambda: class_loss(fastdl.nn.CrossEntropyLoss()),
    "NLLLoss": lambda: class_loss(fastdl.nn.NLLLoss()),
    "Embedding": embedding,
    "ReLU": lambda: fastdl.nn.ReLU(),
    "Sigmoid": lambda: fastdl.nn.Sigmoid(),
    "Tanh": lambda: fastdl.nn.Tanh(),
    "GELU": lambda: fastdl.nn.GELU(),
    "SiLU": lambda: fastdl.nn.SiLU(),
    "LeakyReLU": lambda: fastdl.nn.LeakyReLU(0.2),
    "ELU": lambda: fastdl.nn.ELU(),
    "Conv1d": lambda: fastdl.nn.Conv1d(5, 4, 3, padding="same"),
    "Conv2d": lambda: fastdl.nn.Conv2d(5, 4, 3, 2, 1, groups=1),
    "Conv2d reflected": lambda: fastdl.nn.Conv2d(
        5, 10, 3, padding=1, groups=5, padding_mode="reflect"
    ),
    "MaxPool1d": lambda: fastdl.nn.MaxPool1d(3, 2, 1),
    "MaxPool2d": lambda: fastdl.nn.MaxPool2d(3, 2, 1),
    "AvgPool1d": lambda: fastdl.nn.AvgPool1d(3, 2, 1),
    "AvgPool2d": lambda: fastdl.nn.AvgPool2d(3, 2, 1),
    "AdaptiveMaxPool1d": lambda: fastdl.nn.AdaptiveMaxPool1d(2),
    "AdaptiveMaxPool2d": lambda: fastdl.nn.AdaptiveMaxPool2d(2),
    "AdaptiveAvgPool1d": lambda: fastdl.nn.AdaptiveAvgPool1d(2),
    "AdaptiveAvgPool2d": lambda: fastdl.nn.AdaptiveAvgPool2d(2),
    "MultiheadAttention": lambda: Adapted(
        fastdl.nn.MultiheadAttention(8, 2, batch_first=True),
        lambda module, x: module(*(x.flatten(0, -3),) * 3, need_weights=False)[0],
    ),
}

# Random: traced in test_dropout.py; spares reshapes that torch's module has in its graphs.
ELSEWHERE = {"Dropout", "LinearCrossEntropyLoss"} & set(fastdl.nn.__all__)

all_modules = pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))


def input_of(make: Callable[[], nn.Module]) -> Tensor:
    """Fresh random values of as many dimensions as the module takes."""
    name = type(make()).__name__
    shape = SHAPE[:3] if name.endswith("1d") else (*SHAPE, 2) if name.endswith("3d") else SHAPE
    return torch.randn(shape)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def test_every_module_is_traced_here() -> None:
    modules = [make() for make in MODULES.values()]
    inner = [module.inner if isinstance(module, Adapted) else module for module in modules]
    traced = {type(module).__name__ for module in inner}
    assert traced | ELSEWHERE == set(fastdl.nn.__all__)


@all_modules
def test_compile_takes_the_whole_module(make: Callable[[], nn.Module]) -> None:
    module, x = make(), input_of(make).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    fast, eager = compiled(x), module(x)
    assert_alike(fast, eager)
    grads = [torch.autograd.grad(y.sin().sum(), [x, *module.parameters()]) for y in (fast, eager)]
    torch.testing.assert_close(*grads)


@all_modules
def test_compile_through_the_joint_graph(make: Callable[[], nn.Module]) -> None:
    module, x = make(), input_of(make).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 2):
        fast, eager = compiled(x[:batch]), module(x[:batch])
        leaves = [x, *module.parameters()]
        torch.testing.assert_close(fast, eager)
        grads = [torch.autograd.grad(y.sin().sum(), leaves) for y in (fast, eager)]
        torch.testing.assert_close(*grads)


@all_cases
def test_compiled_functions_are_native_ones_that_the_compiler_can_fuse_but_for_heavy_ones(
    case: FunctionCase,
) -> None:
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    tensors = case.tensors()
    compiled = torch.compile(case.fast, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*tensors), case.native(*tensors))
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    ours = [target for target in targets if "fastdl" in target]
    assert targets and len(ours) == case.name.startswith(("conv", "scaled_dot_product_attention"))


@all_modules
@pytest.mark.parametrize("strict", [False, True])
def test_export_gives_the_program_of_the_torch_module(
    make: Callable[[], nn.Module], strict: bool
) -> None:
    module, x = make().eval(), input_of(make)
    program = torch.export.export(module, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), module(x))
    native = fastdl.revert(make()).eval()
    native.load_state_dict(module.state_dict())
    expected = torch.export.export(native, (x,), strict=strict)
    operators = [
        [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        for exported in (program, expected)
    ]
    assert operators[0] == operators[1]


@all_modules
def test_symbolic_trace_of_a_model_gives_the_same_result(make: Callable[[], nn.Module]) -> None:
    # torch.fx keeps torch.nn modules as leaves, and traces through classes of other packages.
    model, x = nn.Sequential(make(), nn.Identity()), input_of(make)
    torch.testing.assert_close(fx.symbolic_trace(model)(x), model(x))


@all_cases
def test_functions_are_recorded_by_symbolic_trace(case: FunctionCase) -> None:
    _, *parameters = case.tensors()
    traced = fx.symbolic_trace(lambda input: case.fast(input, *parameters))
    other = torch.randn(case.shape)
    torch.testing.assert_close(traced(other), case.native(other, *parameters))


@all_modules
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_gives_the_same_result(make: Callable[[], nn.Module]) -> None:
    module, x = make().eval(), input_of(make)
    with torch.no_grad():  # with gradients torch's check of attention compares two paths of it
        traced = torch.jit.trace(module, (x,))
    other = input_of(make)
    torch.testing.assert_close(traced(other), module(other))


@all_modules
def test_make_fx_records_native_operators(make: Callable[[], nn.Module]) -> None:
    module, x = make(), input_of(make)
    graph = fx.experimental.proxy_tensor.make_fx(module)(x)
    torch.testing.assert_close(graph(x), module(x))
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets and not any("fastdl" in target for target in targets)
