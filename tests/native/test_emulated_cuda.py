"""The CUDA kernels, run on the CPU by csrc/emulation (`make emulate`): the other files' tests, in other orders of threads.

What is tested of an operator's numbers on the CPU is tested here of its CUDA kernel: the tests of those files that take
`isa`, `device` or `gpu`, with the operators exchanged. docs/architecture.md says what emulation cannot show.
"""

import ctypes
import functools
import inspect
import os
from pathlib import Path

import pytest
import test_dynamics_op
import test_ensembles_op
import test_k_center_op
import test_k_means_op
import test_neighbors_op
import test_scatter_op
import test_scores_op
import test_top_b_op
import torch
from test_every_op import arguments_of, assert_same, on_cuda, outcome

from prunefuse.ops import loader

LIBRARY = Path(__file__).parents[2] / "build/emulation/libprunefuse_emulated.so"
if LIBRARY.is_file():
    torch.ops.load_library(LIBRARY)
elif not os.environ.get("PRUNEFUSE_REQUIRE_PACKAGES"):
    pytest.skip("the emulation is not built: make emulate", allow_module_level=True)

ON_CPU = torch.ops.prunefuse
RISING, FALLING = 0, 1  # orders of threads; others are seeds of random ones


class Emulated:
    """Stands in for torch.ops.prunefuse: CPU tensors, CUDA kernels."""

    def __getattr__(self, name):
        operator = getattr(torch.ops.prunefuse_emulated, name).default
        return functools.partial(operator.redispatch, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA))


def choose_order(order):
    ctypes.CDLL(str(LIBRARY)).emulation_choose_order(ctypes.c_uint64(order))


@pytest.fixture(autouse=True)
def emulated(monkeypatch, request):
    monkeypatch.setattr(torch.ops, "prunefuse", Emulated())
    # Another order in every test, the same in every run.
    choose_order(sum(map(ord, request.node.name)))
    # Memory that no kernel has written yet reads as NaN or as an index far out.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def isa():
    """Of no matter here."""


@pytest.fixture
def device():
    return "cpu"


@pytest.fixture
def gpu():
    return "cpu"


FILES = (
    test_dynamics_op,
    test_ensembles_op,
    test_k_center_op,
    test_k_means_op,
    test_neighbors_op,
    test_scatter_op,
    test_scores_op,
    test_top_b_op,
)
NOT_OF_KERNELS = ("opcheck", "compile", "flops", "large_pool")


def adopted():
    for file in FILES:
        for name, test in vars(file).items():
            if not name.startswith("test_") or any(word in name for word in NOT_OF_KERNELS):
                continue
            if not {"isa", "device", "gpu"}.isdisjoint(inspect.signature(test).parameters):
                yield f"{file.__name__.removesuffix('_op')}_{name.removeprefix('test_')}", test


globals().update(adopted())


def arguments(name):
    made = arguments_of(name)
    if name == "nearest_neighbors":  # the most work by far
        return made[0][:60], *made[1:]
    return (*made[:2], made[2][:4]) if name == "k_means_plus_plus" else made


@pytest.mark.parametrize("name", on_cuda)
def test_the_order_of_threads_changes_no_bit_and_the_cpu_agrees(name):
    results = []
    for order in (RISING, FALLING, 2, 3):
        choose_order(order)
        results.append(outcome(name, arguments(name), getattr(torch.ops.prunefuse, name)))
    for result in results[1:]:
        assert_same(result, results[0])
    expected = outcome(name, arguments(name), getattr(ON_CPU, name))
    if name == "absorb_":  # what else is known of rows with a NaN is of no matter
        for state in (results[0][0], expected[0]):
            state[:5, state[5] != 0] = 0
    assert_same(results[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.skipif("avx512" not in loader.native.isa_levels(), reason="adds up in another order")
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (40, 3), (257, 4), (900, 17), (1500, 64), (301, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_k_center_picks_what_the_cpu_picks(dtype, rows, width, offset):
    """Bit for bit, as k_center.cu says: equal distances but for rounding are told apart alike."""
    values = torch.randn(rows * width + offset, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    features = values[offset:].view(rows, width)
    for labeled, start in (([], rows // 2), (list(range(0, rows, max(1, rows // 19))), -1)):
        call = features, torch.tensor(labeled, dtype=torch.int64), min(rows, 30), start
        assert torch.equal(torch.ops.prunefuse.k_center_greedy(*call), ON_CPU.k_center_greedy(*call))
