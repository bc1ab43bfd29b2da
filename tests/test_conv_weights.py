"""Weights kept in the order of the kernel: used while they are the same, and never afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fastdl
from fastdl import _C

pytestmark = pytest.mark.cpu_only("where weights are packed")


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    limit = _C.limit_packed_weights(0)
    _C.limit_packed_weights(limit)
    yield
    _C.limit_packed_weights(limit)


def layer(channels: int = 16) -> nn.Conv2d:
    return fastdl.convert(nn.Conv2d(channels, 24, 3, padding=1))


def check(module: nn.Conv2d, x: Tensor) -> None:
    """The output is that of the weight as it is now, whatever was kept."""
    with torch.no_grad():
        expected = nn.functional.conv2d(x, module.weight, module.bias, padding=1)
        for _ in range(2):
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


X = torch.randn(2, 16, 12, 13)

CHANGES: dict[str, Callable[[nn.Conv2d], object]] = {
    "in place": lambda m: m.weight.mul_(2),
    "one element": lambda m: m.weight[3, 4].fill_(7.0),
    "through data": lambda m: m.weight.data.mul_(2),
    "data replaced": lambda m: setattr(m.weight, "data", torch.randn_like(m.weight)),
    "data replaced by another layout": lambda m: setattr(
        m.weight, "data", torch.randn_like(m.weight).contiguous(memory_format=torch.channels_last)
    ),
    "parameter replaced": lambda m: setattr(m, "weight", nn.Parameter(torch.randn_like(m.weight))),
    "load_state_dict": lambda m: m.load_state_dict(nn.Conv2d(16, 24, 3).state_dict()),
    "through numpy": lambda m: m.weight.detach().numpy().__imul__(3),
    "to another dtype and back": lambda m: m.bfloat16().float(),
    "copied from": lambda m: m.weight.copy_(torch.randn_like(m.weight)),
    "swapped": lambda m: torch.utils.swap_tensors(
        m.weight, nn.Parameter(torch.randn_like(m.weight))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_weight_counts(name: str) -> None:
    module = layer()
    check(module, X)
    for _ in range(2):
        with torch.no_grad():
            CHANGES[name](module)
        check(module, X)


@pytest.mark.parametrize("package", [torch.optim, fastdl.optim], ids=["torch", "fastdl"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_steps_of_an_optimizer_count(package: object, name: str) -> None:
    module = layer()
    optimizer = getattr(package, name)(module.parameters(), lr=0.1)
    for _ in range(3):
        check(module, X)
        module(X).square().mean().backward()
        optimizer.step()
    check(module, X)


def test_a_weight_is_kept_once_and_only_without_a_gradient() -> None:
    module = layer()
    module(X)
    assert _C.packed_weights() == (0, 0)
    with torch.no_grad():
        for _ in range(3):
            module(X)
            module(X[:1])
        assert _C.packed_weights()[0] == 1
    with torch.inference_mode():
        module(X)
        assert _C.packed_weights()[0] == 1
    frozen = layer().requires_grad_(False)
    frozen(X.clone().requires_grad_()).sum().backward()
    assert _C.packed_weights()[0] == 2


def test_weights_that_are_gone_are_dropped_and_their_addresses_count_for_nothing() -> None:
    with torch.no_grad():
        for number in range(20):
            weight = torch.full((24, 16, 3, 3), float(number))
            output = fastdl.functional.conv2d(X, weight)
            expected = nn.functional.conv2d(X, weight)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-3)
            del weight
        assert _C.packed_weights() == (0, 0)


def test_no_more_bytes_are_kept_than_allowed_those_used_last() -> None:
    modules = [layer() for _ in range(4)]
    with torch.no_grad():
        modules[0](X)
        _, size = _C.packed_weights()
        assert size > 0
        _C.limit_packed_weights(2 * size)
        for module in modules:
            module(X)
            modules[0](X)
            assert _C.packed_weights()[1] <= 2 * size
        assert _C.packed_weights() == (2, 2 * size)
        _C.limit_packed_weights(0)
        assert _C.packed_weights() == (0, 0)
        check(modules[0], X)
        assert _C.packed_weights() == (0, 0)


def test_other_settings_of_the_same_weight_are_kept_apart() -> None:
    weight = torch.randn(16, 16, 3, 3)
    with torch.no_grad():
        for _ in range(2):
            for options in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2}):
                for x in (X, X.contiguous(memory_format=torch.channels_last), X.bfloat16()):
                    own = weight if x.dtype == torch.float32 else weight.bfloat16()
                    output = fastdl.functional.conv2d(x, own, **options)
                    expected = nn.functional.conv2d(x, own, **options)
                    tolerance = 1e-4 if x.dtype == torch.float32 else 0.05
                    torch.testing.assert_close(
                        output, expected, rtol=tolerance, atol=10 * tolerance
                    )


def test_inference_tensors_are_not_kept() -> None:
    with torch.inference_mode():
        module = layer()
        check(module, X)
        assert _C.packed_weights() == (0, 0)
        module.weight.mul_(2)
        check(module, X)


def test_threads_may_use_and_change_weights_at_once() -> None:
    modules = [layer() for _ in range(3)]
    with torch.no_grad():
        modules[0](X)
    _C.limit_packed_weights(2 * _C.packed_weights()[1])
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            torch.set_num_threads(1)
            own = layer()
            for turn in range(30):
                check(modules[(number + turn) % 3], X)
                check(own, X)
                with torch.no_grad():
                    own.weight.add_(0.01)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
