"""Options, seeds and fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import fastdl
from fastdl import _C

settings.register_profile(
    "fastdl",
    deadline=None,  # a first call may load libraries
    derandomize=True,  # a failure is the same on every machine
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastdl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that need minutes and GiB")
    parser.addoption("--device", help="where the tensors of the tests are: cpu (default) or cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs minutes or many GiB; run with --slow")
    config.addinivalue_line(
        "markers", "every_isa: also run with each lower instruction set (test_instruction_sets.py)"
    )
    config.addinivalue_line("markers", "cpu_only(what): skipped with any other --device")
    config.addinivalue_line("markers", "sanitizer_small: quick enough for every sanitizer of CUDA")
    # Shortened products would hide the kernels' own errors, in the emulator too.
    torch.backends.cudnn.allow_tf32 = False
    device = config.getoption("--device")
    if device is None:
        return
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        pytest.exit("there is no GPU that torch can use: no test was run", returncode=0)
    # Now, since some test files make tensors when they are imported.
    torch.set_default_device(device)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_cpu = torch.get_default_device().type == "cpu"
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="needs --slow"))
        if (marker := item.get_closest_marker("cpu_only")) and not on_cpu:
            item.add_marker(pytest.mark.skip(reason=f"only on the CPU: {marker.args[0]}"))


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Every test starts from the same random numbers and counts, and leaves torch as it was.

    Convolutions use our kernels even where native torch is faster, which depends on the machine.

    One thread, since almost all tensors here are small: on a busy machine torch's pool would spend
    more time in waking its threads than in computing. Tests of large tensors ask for `threads`.
    """
    torch.manual_seed(20240229)
    fastdl.reset_hand_overs()
    _C.always_use_conv_kernels(True)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def threads() -> int:
    """Three threads, on any machine: work then splits into unequal parts."""
    torch.set_num_threads(3)
    return 3


@pytest.fixture
def no_default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without the function mode that a default device is: the plain state of torch."""
    torch.set_default_device(None)
    yield
    torch.set_default_device(request.config.getoption("--device"))
