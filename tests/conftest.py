"""Fixtures for all tests: devices, and instruction-set levels."""

import pytest
import torch
from device_waits import counting

from prunefuse.ops import loader


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make slow-tests"))
    # What runs on a GPU is the same at every instruction-set level of the CPU.
    again = [
        item for item in items if _on_gpu(item) and item.callspec.params.get("isa", "baseline") != "baseline"
    ]
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item not in again]
    reason = loader.why_no_cuda or (None if torch.cuda.is_available() else "no GPU")
    if reason:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=f"CUDA: {reason}"))


def _on_gpu(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return "cuda" in (params.get("device"), params.get("gpu"))


@pytest.fixture(autouse=True)
def seeded():
    """Models and data that a test draws without a generator are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request):
    """Where CUDA kernels run: on a GPU, and in tests/native/test_emulated_cuda.py on the CPU."""
    return request.param


@pytest.fixture(params=["counted", pytest.param("cuda", marks=pytest.mark.cuda)])
def count_waits(request, monkeypatch):
    """`count_waits(call, *tensors)`: what the call gives for tensors on a device, brought to the CPU, and how often it waited
    for the device: on a GPU, and by tests/device_waits.py without one."""

    def run(call, *tensors):
        with counting(request.param, monkeypatch) as counter:
            result = call(*(counter.to(tensor) for tensor in tensors))
        several = result if isinstance(result, tuple) else (result,)
        host = [counter.host(one) if isinstance(one, torch.Tensor) else one for one in several]
        return host[0] if len(host) == 1 else host, counter.count

    return run


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Forces each instruction-set level in turn; skips those that this processor lacks."""
    if request.param not in loader.native.isa_levels():
        pytest.skip(f"this processor has no {request.param}")
    loader.native.force_isa(request.param)
    yield request.param
    loader.native.force_isa(None)
