"""The module classes with the inputs of PyTorch's own module database."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdl
from tests.compare import assert_close_or_accurate, assert_same_bits, assert_same_metadata
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name

pytest.importorskip("expecttest", reason="the database of torch needs expecttest")
from torch.testing._internal.common_modules import (
    FunctionInput,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    module_db,
)

ABSENT = {"Dropout", "Sequential"}  # from the database; tested in files of their own
# The database has inputs of these that no kernel covers.
PARTLY_COVERED = (
    *("Conv1d", "Conv2d"),
    *("CrossEntropyLoss", "LinearCrossEntropyLoss"),
    "MultiheadAttention",
)

MODULES = [info for info in module_db if info.module_cls.__name__ in fastdl.nn.__all__]

all_modules = pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
float_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def twin(info: ModuleInfo) -> type[nn.Module]:
    return getattr(fastdl.nn, info.module_cls.__name__)


def module_inputs(info: ModuleInfo, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    torch.manual_seed(7)
    inputs = info.module_inputs_func(info, torch.get_default_device(), dtype, True, training)
    assert inputs
    return list(inputs)


def construct(cls: type[nn.Module], input: ModuleInput, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(8)
    arguments = input.constructor_input
    module = cls(*arguments.args, **arguments.kwargs).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def run(module: nn.Module, input: ModuleInput) -> list[Any]:
    """The output and all gradients; raises what the module raises."""
    arguments = input.forward_input
    output = module(*arguments.args, **arguments.kwargs)
    tensors = (*arguments.args, *arguments.kwargs.values())
    leaves = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    output, *indices = output if isinstance(output, tuple) else (output,)
    grad = torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape).to(output.dtype)
    return [output, *indices, *torch.autograd.grad(output, [*leaves, *module.parameters()], grad)]


def in_float64(value: Tensor | None) -> Tensor | None:
    return value.double() if value is not None and value.is_floating_point() else value


def test_every_module_is_in_the_database() -> None:
    assert {info.module_cls.__name__ for info in MODULES} | ABSENT == set(fastdl.nn.__all__)


@all_modules
@float_dtypes
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_torch(
    info: ModuleInfo, dtype: torch.dtype, training: bool
) -> None:
    for input in module_inputs(info, dtype, training):
        fast = construct(twin(info), input, dtype).train(training)
        native = construct(info.module_cls, input, dtype).train(training)
        # torch alone decides what batch_norm makes of an empty tensor.
        name = info.module_cls.__name__
        empty = "BatchNorm" in name and input.forward_input.args[0].numel() == 0
        covered = name not in PARTLY_COVERED and not empty
        # Winograd has a rule of its own: test_conv_winograd.py.
        with fastdl.strict() if covered else nullcontext(), fastdl.allow_winograd(False):
            actual = run(fast, input)
        expected = run(native, input)
        arguments = input.forward_input
        for values in (arguments.args, arguments.kwargs.values()):
            assert all(value is None or isinstance(value, Tensor) for value in values)
        doubled = FunctionInput(
            *(in_float64(value) for value in arguments.args),
            **{name: in_float64(value) for name, value in arguments.kwargs.items()},
        )
        exact = run(native.double(), ModuleInput(input.constructor_input, doubled))
        for number, triple in enumerate(zip(actual, expected, exact, strict=True)):
            assert_same_metadata(*triple[:2], f"{number} of {input.desc}")
            if not triple[0].is_floating_point():  # indices
                assert_same_bits(*triple[:2], f"{number} of {input.desc}")
                continue
            assert_close_or_accurate(
                *triple, gradient=number > 0, label=f"{number} of {input.desc}"
            )


@all_modules
def test_error_inputs_raise_what_torch_raises(info: ModuleInfo) -> None:
    if info.module_error_inputs_func is None:
        wrong: list[Any] = ["text", None, 3, torch.zeros(3, dtype=torch.complex64)]
        for input in module_inputs(info, torch.float32, True)[:1]:
            fast = construct(twin(info), input, torch.float32)
            native = construct(info.module_cls, input, torch.float32)
            for value in wrong:
                outcome = assert_same_outcome(
                    lambda: fast(value),  # noqa: B023
                    lambda: native(value),  # noqa: B023
                    f"{value!r}",
                )
                assert outcome.error is not None or isinstance(value, Tensor)
        return
    for error in info.module_error_inputs_func(
        info, torch.get_default_device(), torch.float32, False, True
    ):
        inputs = error.module_error_input

        def construct_and_run(
            cls: type[nn.Module], inputs: ModuleInput = inputs, error: Any = error
        ) -> Any:
            made = cls(*inputs.constructor_input.args, **inputs.constructor_input.kwargs)
            if error.error_on != ModuleErrorEnum.FORWARD_ERROR:
                return made
            return made(*inputs.forward_input.args, **inputs.forward_input.kwargs)

        outcome = assert_same_outcome(
            lambda: construct_and_run(twin(info)),
            lambda: construct_and_run(info.module_cls),
            warnings=False,
        )
        assert outcome.error is not None


@all_modules
def test_class_is_torchs_with_another_forward(info: ModuleInfo) -> None:
    cls = twin(info)
    assert issubclass(cls, info.module_cls) and cls.__name__ == info.module_cls.__name__
    own = {name for name in vars(cls) if not name.startswith("__")}
    assert own == {"_conv_forward" if "Conv" in cls.__name__ else "forward"}


@all_modules
def test_repr_state_dict_copy_and_pickle_are_those_of_torch(info: ModuleInfo) -> None:
    for input in module_inputs(info, torch.float32, True):
        fast = construct(twin(info), input, torch.float32)
        native = construct(info.module_cls, input, torch.float32)
        assert repr(fast) == repr(native)
        assert fast.__dict__.keys() == native.__dict__.keys()
        native.load_state_dict(fast.state_dict(), strict=True)
        fast.load_state_dict(native.state_dict(), strict=True)
        for clone in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert type(clone) is twin(info)
            for name, value in fast.state_dict().items():
                assert_same_bits(clone.state_dict()[name], value, name)


@all_modules
def test_initial_parameters_are_those_of_torch(info: ModuleInfo) -> None:
    for input in module_inputs(info, torch.float32, True):
        arguments = input.constructor_input
        modules = []
        for cls in (twin(info), info.module_cls):
            torch.manual_seed(3)
            modules.append(cls(*arguments.args, **arguments.kwargs))
        for fast, native in zip(*(m.parameters() for m in modules), strict=True):
            assert_same_bits(fast, native)
