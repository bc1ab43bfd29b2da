"""The samples of PyTorch's own operator database, those that must raise an error included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from tests.cases import CASES
from tests.compare import assert_close_or_accurate, assert_same_bits, assert_same_metadata
from tests.outcome import assert_same_outcome
from tests.tensors import DTYPES, dtype_name

pytest.importorskip("expecttest", reason="the database of torch needs expecttest")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo

# In the database, but two generators never give the same values (tested in files of their own).
RANDOM = {"dropout", "multi_head_attention_forward"}
OWN = {  # torch has no such functions there
    "batch_norm_relu",
    "conv1d_add",
    "conv1d_relu",
    "conv2d_add",
    "conv2d_relu",
    "dropout_add_layer_norm",
    "varlen_attn",
}
COVERED = set(fastdl.functional.__all__) - RANDOM - OWN
OPS = [op for op in op_db if op.name.removeprefix("nn.functional.") in COVERED]

all_ops = pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)


def twin(op: OpInfo) -> Any:
    """The function of fastdl for this entry."""
    return function_of(fastdl.functional, op)


def native(op: OpInfo) -> Any:
    """The function of torch.nn.functional for this entry, since the samples fit its signature."""
    return function_of(torch.nn.functional, op)


def function_of(module: Any, op: OpInfo) -> Any:
    """The function, called as the samples of its entry are."""
    function = getattr(module, op.name.removeprefix("nn.functional."))
    if op.name == "nn.functional.embedding":  # the samples begin with what has a gradient
        return lambda weight, indices, **options: function(indices, weight, **options)
    return function


def test_every_function_is_in_the_database() -> None:
    names = {op.name.removeprefix("nn.functional.") for op in OPS}
    assert names | RANDOM | OWN == set(fastdl.functional.__all__)


def test_every_function_has_a_case_for_what_all_functions_must_pass() -> None:
    named = {
        name for name in COVERED if any(f"{case.name}_".startswith(f"{name}_") for case in CASES)
    }
    assert named == COVERED


def in_float64(value: Any) -> Any:
    """The same number or tensor for the exact result."""
    if not isinstance(value, Tensor):
        return torch.float64 if isinstance(value, torch.dtype) else value
    if not value.is_floating_point():  # class indices
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


@all_ops
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_samples_are_as_accurate_as_with_torch(op: OpInfo, dtype: torch.dtype) -> None:
    with fastdl.allow_winograd(False):  # which has a rule of its own: test_conv_winograd.py
        check_samples(op, dtype)


def check_samples(op: OpInfo, dtype: torch.dtype) -> None:
    samples = list(op.sample_inputs(torch.get_default_device(), dtype, requires_grad=True))
    assert samples
    for sample in samples:
        if sample.kwargs.get("dropout_p"):  # random, as above
            continue
        before = sample.input.detach().clone()
        exact = sample.transform(in_float64)
        exact.kwargs.pop("options", None)  # of linear_cross_entropy: they fit the dtype
        results = []
        for function, used in ((twin(op), sample), (native(op), sample), (native(op), exact)):
            values = [used.input, *used.args, *used.kwargs.values()]
            leaves = [v for v in values if isinstance(v, Tensor) and v.requires_grad]
            outputs = function(used.input, *used.args, **used.kwargs)
            output, *indices = outputs if isinstance(outputs, tuple) else (outputs,)
            grad = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
            results.append([output, *torch.autograd.grad(output, leaves, grad), *indices])
        for number, (fast, theirs, right) in enumerate(zip(*results, strict=True)):
            label = f"{number} of {sample.summary()}"
            # torch's attention has the strides of whatever it takes for a sample's sizes.
            assert_same_metadata(fast, theirs, label, "attention" not in op.name)
            if not theirs.is_floating_point():
                assert torch.equal(fast, theirs), label
                continue
            if "attention" in op.name:
                # Scores of hundreds: of so few numbers, one rounding decides who is more accurate.
                largest = max(float(right.abs().max()), 10.0)
                tolerance = 16 * torch.finfo(theirs.dtype).eps * largest
                tolerance += 4 * float((theirs.double() - right).abs().max())
                torch.testing.assert_close(fast.double(), right, rtol=0, atol=tolerance)
                continue
            assert_close_or_accurate(fast, theirs, right, gradient=number > 0, label=label)
        assert_same_bits(sample.input.detach(), before, "input afterwards")


@all_ops
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=dtype_name)
def test_other_dtypes_give_the_outcome_of_torch(op: OpInfo, dtype: torch.dtype) -> None:
    for sample in op.sample_inputs(torch.get_default_device(), torch.float32):
        input = sample.input.to(dtype)
        assert_same_outcome(
            lambda: twin(op)(input, *sample.args, **sample.kwargs),  # noqa: B023
            lambda: native(op)(input, *sample.args, **sample.kwargs),  # noqa: B023
            sample.summary(),
            warnings=False,
        )


@all_ops
def test_error_inputs_raise_what_torch_raises(op: OpInfo) -> None:
    if op.error_inputs_func is None:
        # The database has none for this one; test_bad_input.py has.
        assert op.name != "nn.functional.rms_norm"
        return
    for error_input in op.error_inputs(torch.get_default_device()):
        sample = error_input.sample_input
        outcome = assert_same_outcome(
            lambda: twin(op)(sample.input, *sample.args, **sample.kwargs),  # noqa: B023
            lambda: native(op)(sample.input, *sample.args, **sample.kwargs),  # noqa: B023
            sample.summary(),
        )
        assert outcome.error is not None
