"""Autocast, subclasses, function and dispatch modes, checkpointing contexts: seen as with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from tests.cases import FunctionCase, all_cases
from tests.compare import assert_same_metadata
from tests.tensors import DTYPES, dtype_name


class RecordFunctions(TorchFunctionMode):
    """Notes the name of every torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


class RecordOperators(TorchDispatchMode):
    """Notes the name of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Tagged(Tensor):
    """A subclass that is preserved and notes the functions that it went through."""

    names: list[str]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        cls.names.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


class Wrapper(Tensor):
    """A subclass around a tensor, which only __torch_dispatch__ can compute with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapper:
        wrapper = Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=held.device
        )
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        def unwrap(value: Any) -> Any:
            return value.held if isinstance(value, Wrapper) else value

        def wrap(value: Any) -> Any:
            return Wrapper(value) if isinstance(value, Tensor) else value

        mapped = torch.utils._pytree.tree_map(unwrap, (tuple(args), kwargs or {}))
        return torch.utils._pytree.tree_map(wrap, function(*mapped[0], **mapped[1]))


@all_cases
@pytest.mark.parametrize("input_dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast_gives_the_dtype_of_torch(
    case: FunctionCase, input_dtype: torch.dtype, autocast_dtype: torch.dtype
) -> None:
    x = case.tensors(input_dtype)[0].requires_grad_()
    parameters = case.leaves()[1:]  # float32, as the parameters of a module are
    if input_dtype == torch.float64:
        parameters = [p.detach().double().requires_grad_() for p in parameters]
    results = []
    for call in (case.fast, case.native):
        with torch.autocast(torch.get_default_device().type, dtype=autocast_dtype):
            output = call(x, *parameters)
        results.append([output])
        if case.name != "layer_norm_bias":  # torch has no backward for a float32 bias alone
            results[-1] += torch.autograd.grad(output.sum(), [x, *parameters])
    for fast, native in zip(*results, strict=True):
        assert_same_metadata(fast, native)
        torch.testing.assert_close(fast, native, rtol=2e-2, atol=2e-2)


@all_cases
def test_autocast_inside_a_model_and_disabled_again(case: FunctionCase) -> None:
    x, *parameters = case.tensors()
    dtypes = []
    for call in (case.fast, case.native):
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            product = x @ torch.ones(x.shape[-1], x.shape[-1])
            inside = call(product, *parameters)
            with torch.autocast(torch.get_default_device().type, enabled=False):
                outside = call(product.float(), *parameters)
        dtypes.append([inside.dtype, outside.dtype])
    assert dtypes[0] == dtypes[1]


@all_cases
def test_function_modes_see_what_they_see_of_torch(case: FunctionCase) -> None:
    tensors = case.tensors()
    seen = []
    for call in (case.fast, case.native):
        with RecordFunctions() as mode:
            call(*tensors)
        seen.append(mode.names)
    assert seen[0] == seen[1] and seen[0]


@all_cases
def test_dispatch_modes_see_the_operators_of_torch(case: FunctionCase) -> None:
    leaves = case.leaves()
    seen = []
    for call in (case.fast, case.native):
        with RecordOperators() as mode:
            call(*leaves)
        seen.append(mode.names)
    assert seen[0] == seen[1] and seen[0]


@all_cases
@pytest.mark.parametrize("position", [0, -1])
def test_subclasses_with_torch_function_are_preserved(case: FunctionCase, position: int) -> None:
    tensors = case.tensors()
    tensors[position] = tensors[position].as_subclass(Tagged)
    results = []
    for call in (case.fast, case.native):
        Tagged.names = []
        results.append((type(call(*tensors)), Tagged.names))
    assert results[0] == results[1]
    assert results[0][0] is Tagged


@all_cases
def test_subclasses_with_torch_dispatch_are_preserved(case: FunctionCase) -> None:
    tensors = case.tensors()
    wrapped = [Wrapper(tensor) for tensor in tensors]
    output = case.fast(*wrapped)
    assert type(output) is Wrapper
    torch.testing.assert_close(output.held, case.native(*tensors))


@all_cases
def test_subclass_as_grad_output_is_preserved(case: FunctionCase) -> None:
    leaves = case.leaves()
    output = case.fast(*leaves)
    grad = torch.randn(case.shape)
    (wrapped,) = torch.autograd.grad(output, leaves[:1], Wrapper(grad), retain_graph=True)
    (plain,) = torch.autograd.grad(output, leaves[:1], grad)
    assert type(wrapped) is Wrapper
    torch.testing.assert_close(wrapped.held, plain, rtol=1e-4, atol=1e-5)


@all_cases
def test_parameters_are_plain_tensors(case: FunctionCase) -> None:
    tensors = [torch.nn.Parameter(tensor) for tensor in case.tensors()]
    with fastdl.strict():
        output = case.fast(*tensors)
    assert type(output) is Tensor


@all_cases
@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
        lambda: torch.autograd.set_multithreading_enabled(False),
        lambda: torch.autograd.graph.allow_mutation_on_saved_tensors(),
        lambda: torch.get_default_device(),
        lambda: torch.autograd.profiler.profile(),
    ],
    ids=["save_on_cpu", "no hooks", "one thread", "mutation", "device", "profiler"],
)
def test_other_contexts_change_nothing(case: FunctionCase, context: Callable[[], Any]) -> None:
    leaves = case.leaves()
    expected = torch.autograd.grad(case.native(*leaves).sin().sum(), leaves)
    with context():
        grads = torch.autograd.grad(case.fast(*leaves).sin().sum(), leaves)
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)


@all_cases
def test_profiler_names_the_op(case: FunctionCase) -> None:
    leaves = case.leaves()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        case.fast(*leaves).sum().backward()
    names = {event.key for event in profiler.key_averages()}
    assert any(name.startswith("fastdl::") for name in names), sorted(names)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_no_obstacle(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    try:
        x = torch.randn(3, 4, requires_grad=True)
        with fastdl.strict():
            fastdl.functional.layer_norm(x, (4,)).sum().backward()
            fastdl.functional.softmax(x, 0).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@all_cases
def test_a_default_device_is_no_obstacle(case: FunctionCase) -> None:
    tensors = case.tensors()
    before = torch.get_default_device()
    torch.set_default_device(tensors[0].device)
    try:
        with fastdl.strict():
            case.fast(*tensors)
    finally:
        torch.set_default_device(before if before.type != "cpu" else None)
