"""Calls that go to native torch are counted with their reason, and errors under strict()."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastdl
import fastdl.functional as fast
from tests.cases import FunctionCase, all_cases

X = torch.randn(3, 4)

HAND_OVERS: dict[str, tuple[str, Callable[[], object]]] = {
    "log of another dtype": ("log_softmax", lambda: fast.log_softmax(X, 0, dtype=torch.float64)),
    "integers": ("softmax", lambda: fast.softmax(X.int(), 0, dtype=torch.float32)),
    "conversion": ("softmin", lambda: fast.softmin(X, 0, dtype=torch.float64)),
    "meta": ("layer_norm", lambda: fast.layer_norm(X.to("meta"), (4,))),
    "subclass": ("rms_norm", lambda: fast.rms_norm(X.as_subclass(Subclass), (4,))),
    "targets of probabilities that require grad": (
        "cross_entropy",
        lambda: fast.cross_entropy(X, X.softmax(1).requires_grad_()),
    ),
    "one row": (
        "linear_cross_entropy",
        lambda: fast.linear_cross_entropy(X[0], X, torch.tensor(1)),
    ),
    "vmap": ("softmax", lambda: torch.func.vmap(lambda x: fast.softmax(x, 0))(X)),
}


class Subclass(Tensor):
    """A tensor of another class, which torch must see."""


def counted() -> dict[str, int]:
    counts: dict[str, int] = {}
    for op, reason, count in fastdl.report().hand_overs:
        assert reason
        counts[op] = counts.get(op, 0) + count
    return counts


@all_cases
def test_plain_calls_are_not_handed_over(case: FunctionCase) -> None:
    leaves = case.leaves()
    with fastdl.strict():
        case.fast(*leaves).sum().backward()
    assert fastdl.report().hand_overs == []


@pytest.mark.parametrize("name", HAND_OVERS)
def test_a_hand_over_is_counted_with_its_reason(name: str) -> None:
    op, call = HAND_OVERS[name]
    call()
    assert counted() == {op: 1}
    call()
    assert counted() == {op: 2}
    fastdl.reset_hand_overs()
    assert counted() == {}


@pytest.mark.parametrize("name", HAND_OVERS)
def test_strict_raises_and_names_op_and_reason(name: str) -> None:
    op, call = HAND_OVERS[name]
    call()
    ((_, reason, _),) = fastdl.report().hand_overs
    with fastdl.strict(), pytest.raises(RuntimeError) as caught:
        call()
    assert op in str(caught.value) and reason in str(caught.value)
    call()  # outside of the block it is allowed again


@all_cases
def test_backward_with_create_graph_is_counted(case: FunctionCase) -> None:
    leaves = case.leaves()
    torch.autograd.grad(case.fast(*leaves).sin().sum(), leaves, create_graph=True)
    ((op, reason, count),) = fastdl.report().hand_overs
    assert "backward" in op and reason == "create_graph=True" and count == 1
    output = case.fast(*leaves).sin().sum()
    with fastdl.strict(), pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(output, leaves, create_graph=True)


def test_strict_can_be_nested_and_ends_with_an_exception() -> None:
    integers = X.int()
    with fastdl.strict():
        with fastdl.strict():
            pass
        with pytest.raises(RuntimeError):
            fast.softmax(integers, 0, dtype=torch.float32)
    with pytest.raises(KeyError), fastdl.strict():
        raise KeyError
    fast.softmax(integers, 0, dtype=torch.float32)


def test_strict_is_of_this_thread_alone() -> None:
    results: list[Tensor] = []
    with fastdl.strict():
        thread = threading.Thread(
            target=lambda: results.append(fast.softmax(X.int(), 0, dtype=torch.float32))
        )
        thread.start()
        thread.join()
    assert len(results) == 1


def test_optimizers_are_counted_and_strict() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    parameter.grad = torch.ones_like(parameter)
    optimizer = fastdl.optim.AdamW([parameter])
    optimizer.step()
    assert counted() == {"AdamW": 1}
    before = parameter.detach().clone()
    with fastdl.strict(), pytest.raises(RuntimeError, match="AdamW"):
        optimizer.step()
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("options", [{"differentiable": True}])
def test_options_that_only_native_optimizers_have_are_counted(options: dict[str, bool]) -> None:
    parameter = torch.ones(3, requires_grad=True).clone()
    parameter.grad = torch.ones(3)
    fastdl.optim.Adam([parameter], **options).step()
    assert counted() == {"Adam": 1}


def test_report_lists_hand_overs_in_its_text() -> None:
    fast.softmax(X.int(), 0, dtype=torch.float32)
    ((op, reason, count),) = fastdl.report().hand_overs
    text = str(fastdl.report())
    assert op in text and reason in text and str(count) in text


def test_counts_are_exact_when_threads_count_at_once() -> None:
    integers = X.int()
    threads = [
        threading.Thread(
            target=lambda: [fast.softmax(integers, 0, dtype=torch.float32) for _ in range(50)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted() == {"softmax": 400}
