"""The CUDA kernels, run on the CPU by csrc/emulation (`make emulate`): the other files' tests, in other orders of threads.

What is tested of an operator's numbers on the CPU is tested here of its CUDA kernel: the tests of those files that take
`isa`, `device` or `gpu`, with the operators exchanged. docs/architecture.md says what emulation cannot show.
"""

import contextlib
import ctypes
import functools
import inspect
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import test_dynamics_op
import test_ensembles_op
import test_every_op
import test_groups_op
import test_k_center_op
import test_k_means_op
import test_keep_best_op
import test_large_op
import test_neighbors_op
import test_scatter_op
import test_scores_op
import test_top_b_op
import torch
from test_every_op import OPS, arguments_of, assert_same, every, flat, matter_of, outcome
from torch.utils._python_dispatch import TorchDispatchMode
from truth import DTYPES, of_scatter, scatter_pair

from prunefuse import ops
from prunefuse.ops import loader

LIBRARY = Path(__file__).parents[2] / "build/emulation/libprunefuse_emulated.so"
if LIBRARY.is_file():
    torch.ops.load_library(LIBRARY)
elif not os.environ.get("PRUNEFUSE_REQUIRE_PACKAGES"):
    pytest.skip("the emulation is not built: make emulate", allow_module_level=True)

ON_CPU = torch.ops.prunefuse
# Operators that are launches and nothing else.
LAUNCHES_ALONE = (
    "absorb_",
    "claim_",
    "divergence_",
    "dynamics",
    "ensemble_add_",
    "push_",
    "scatter_",
    "score",
    "score_ensemble",
    "statistics",
)
RISING, FALLING = 0, 1  # orders of threads; others are seeds of random ones


class Emulated:
    """Stands in for torch.ops.prunefuse: CPU tensors, CUDA kernels."""

    def __getattr__(self, name):
        operator = getattr(torch.ops.prunefuse_emulated, name).default
        return functools.partial(operator.redispatch, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA))


def choose_order(order):
    ctypes.CDLL(str(LIBRARY)).emulation_choose_order(ctypes.c_uint64(order))


@contextlib.contextmanager
def captured():
    """What is called inside is kept, not run, but for torch's own operators; gives what runs all of it."""
    library = ctypes.CDLL(str(LIBRARY))
    library.emulation_capture(ctypes.c_bool(True))
    try:
        yield library.emulation_replay
    finally:
        library.emulation_capture(ctypes.c_bool(False))


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
    test_groups_op,
    test_k_center_op,
    test_keep_best_op,
    test_large_op,
    test_k_means_op,
    test_neighbors_op,
    test_scatter_op,
    test_scores_op,
    test_top_b_op,
)
NOT_OF_KERNELS = ("opcheck", "compile", "flops", "a_large_pool")


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
    return (*made[:2], made[2][:4], *made[3:]) if name == "k_means_plus_plus" else made


@every
def test_the_order_of_threads_changes_no_bit_and_the_cpu_agrees(name):
    results = []
    for order in (RISING, FALLING, 2, 3):
        choose_order(order)
        results.append(outcome(name, arguments(name), getattr(torch.ops.prunefuse, name)))
    for result in results[1:]:
        assert_same(result, results[0])
    expected = outcome(name, arguments(name), getattr(ON_CPU, name))
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


# The others give memory back, or call operators of torch, between their launches.
@pytest.mark.parametrize("name", LAUNCHES_ALONE)
def test_a_replay_reads_nothing_that_the_call_left_on_the_host(name):
    operator = getattr(torch.ops.prunefuse, name)
    expected = outcome(name, arguments_of(name), operator)
    inputs = arguments_of(name)
    before = [t.clone() for t in flat(inputs)]
    with captured() as replay:
        result = operator(*inputs)
    for _ in range(2):
        for t, value in zip(flat(inputs), before, strict=True):
            t.copy_(value)
        replay()
        assert_same(matter_of(name, result, inputs), expected)


class Products(TorchDispatchMode):
    """The dtypes that torch multiplies."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.out:
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float64], ids=str)
@pytest.mark.parametrize("metric", test_neighbors_op.METRICS)
def test_neighbors_are_exact_and_ask_for_no_product_that_a_device_may_round(metric, dtype):
    """A setting of torch or an environment variable is enough for float32 to become TF32. Here products of bfloat16 are
    added up as coarsely as tensor cores may."""
    generator = torch.Generator().manual_seed(1)
    queries, references = (torch.randn(n, 24, generator=generator) for n in (60, 2600))
    references[1300:] = queries[torch.arange(1300) % 60] + 1e-3 * references[1300:]
    queries, references = queries.to(dtype), references.to(dtype)
    with Products() as products:
        for k in (1, 30, 300):
            test_neighbors_op.assert_nearest(queries, references, k, metric)
    assert not products.dtypes


class Allocations(TorchDispatchMode):
    """Counts the bytes that an operator asks torch for."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.new_empty.default, torch.ops.aten.new_zeros.default):
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_an_ensemble_of_long_rows_takes_little_memory_on_a_large_device(dtype):
    """As many rows as an H100 has under way; the launch itself is left out."""
    logits = torch.zeros(1, 1, 128_000, dtype=dtype).expand(10, 10_000, -1)
    library = ctypes.CDLL(str(LIBRARY))
    library.emulation_choose_multiprocessors(132)
    try:
        with captured(), Allocations() as allocated:
            result = torch.ops.prunefuse.score_ensemble(logits, [0], False, 1.0)
    finally:
        library.emulation_choose_multiprocessors(2)
    assert result.nbytes < allocated.bytes <= result.nbytes + (64 << 20)


def special(logits, generator):
    """Rows of all kinds: NaN, infinite and equal maxima anywhere, few classes that are not masked, or none."""
    rows, classes = logits.shape
    anywhere = functools.partial(torch.randint, classes, (2,), generator=generator)
    for i in range(rows):
        kind = int(torch.randint(9, (), generator=generator))
        if kind < 3:
            logits[i, anywhere()] = (math.nan, math.inf, 5.0)[kind]
        elif kind < 6:
            kept = logits[i, at := anywhere()].clone()
            logits[i] = -math.inf
            logits[i, at] = kept if kind < 5 else -math.inf
    return logits


def assert_as_on_the_cpu(logits, probabilities=False):
    """Every utility and statistic, and the states of rows in pieces."""
    strategies = [0, 1, 2, 3, 4]
    tolerance = (
        {"rtol": 3e-5, "atol": 3e-5} if logits.dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-12}
    )
    for name, arguments in (
        ("score", (logits, strategies, probabilities, 0.7)),
        ("statistics", (logits, probabilities, 1.0)),
    ):
        got = flat(getattr(torch.ops.prunefuse, name)(*arguments))
        assert_same(got, flat(getattr(ON_CPU, name)(*arguments)), **tolerance)
    if probabilities:
        return
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    states = [test_every_op.state(len(logits)).to(dtype) for _ in range(2)]
    for state, operators in zip(states, (torch.ops.prunefuse, ON_CPU), strict=True):
        for piece in logits.split(max(1, logits.shape[1] // 2 + 3), dim=1):
            operators.absorb_(state, piece, 0.7)
    assert_same(*map(test_every_op.rows_known, states), **tolerance)


def rows_at(generator, rows, classes, dtype):
    """In memory that begins anywhere, with a gap after each row or none."""
    offset, gap = (int(torch.randint(9, (), generator=generator)) for _ in range(2))
    memory = torch.randn(offset + rows * (classes + gap), generator=generator) * 3
    return memory.to(dtype)[offset:].view(rows, classes + gap)[:, :classes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", range(1, 301, 50))
def test_rows_of_every_length_beginning_anywhere(dtype, first):
    generator = torch.Generator().manual_seed(first)
    for classes in range(first, first + 50):
        logits = special(rows_at(generator, 5, classes, dtype), generator)
        assert_as_on_the_cpu(logits)
        assert_as_on_the_cpu(logits.contiguous())
        if classes % 7 == 0:
            assert_as_on_the_cpu(rows_at(generator, 40, classes, dtype).float().softmax(1).to(dtype), True)


# Where one way to share out rows ends and the next begins, in chunks of 16 bytes.
BORDERS = (8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", BORDERS)
def test_rows_at_the_borders_of_what_lanes_hold(dtype, chunks):
    generator = torch.Generator().manual_seed(chunks)
    width = 16 // dtype.itemsize
    for classes in (chunks * width + extra for extra in (-width, -1, 0, 1, width - 1, width)):
        for rows in (3, 70) if chunks <= 64 else (3,):
            assert_as_on_the_cpu(special(rows_at(generator, rows, classes, dtype), generator))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 7, 9, 13])
@pytest.mark.parametrize("multiprocessors", [2, 4, 5])
def test_few_long_rows_are_shared_by_blocks(dtype, rows, multiprocessors, emulation):
    generator = torch.Generator().manual_seed(rows)
    classes = (66_000 if rows < 9 else 68_003) // dtype.itemsize
    logits = special(rows_at(generator, rows, classes, dtype), generator)
    logits[0, -1] = 9  # in the last piece
    emulation.emulation_choose_multiprocessors(multiprocessors)
    try:
        with Allocations() as allocated:
            result = torch.ops.prunefuse.score(logits, [0], False, 1.0)
        assert allocated.bytes > result.nbytes  # there are pieces
        assert_as_on_the_cpu(logits)
    finally:
        emulation.emulation_choose_multiprocessors(2)


def test_tensors_beyond_what_one_launch_describes_are_scattered():
    generator = np.random.default_rng(5)
    shapes = [((9, 4), (5, 3)), ((6,), (2,)), ((), ()), ((3, 0), (2, 0)), ((2, 3, 3), (2, 2, 3))] * 40
    pairs = [scatter_pair(generator, *shape, torch.float32) for shape in shapes]
    dense = [d.clone() for d, _, _ in pairs]
    with captured() as replay:
        ops.scatter_(dense, [s for _, s, _ in pairs], [k for _, _, k in pairs])
    replay()
    for got, truth in zip(dense, [of_scatter(*p) for p in pairs], strict=True):
        assert torch.equal(got, truth)


@pytest.fixture
def emulation():
    """The emulated driver and card, as they were found again afterwards."""
    library = ctypes.CDLL(str(LIBRARY))
    yield library
    library.emulation_choose_driver(13000)
    library.emulation_choose_card(9)


@every
def test_a_refused_launch_is_an_error_and_nothing_to_later_calls(name, emulation):
    expected = outcome(name, arguments(name), getattr(torch.ops.prunefuse, name))
    given = arguments(name)
    emulation.emulation_refuse_launch(1)
    with pytest.raises(RuntimeError, match="emulation: a launch of a shape that no device takes"):
        getattr(torch.ops.prunefuse, name)(*given)
    assert_same(flat(given), flat(arguments(name)))
    assert_same(outcome(name, given, getattr(torch.ops.prunefuse, name)), expected)
    _, best = torch.ops.prunefuse.top_b(torch.tensor([1.0, 3.0, 2.0]), 2)  # CUB asks for the last error
    assert best.tolist() == [3, 2]


OLD_DRIVER = (
    "the driver is for CUDA 12.4 at most, and this library was built with CUDA 13.0: install a newer driver, "
    "or prunefuse again with an nvcc that the driver is new enough for"
)
NO_CODE = (
    "cuda:0 (Emulated GPU) has compute capability 7.5, and this library was built for 8.0, 9.0: "
    "install prunefuse again with TORCH_CUDA_ARCH_LIST=7.5"
)


@pytest.mark.parametrize(
    ("driver", "card", "reason"),
    [(12040, 9, OLD_DRIVER), (13000, 7, NO_CODE), (12040, 7, OLD_DRIVER)],
    ids=["old driver", "no code", "both"],
)
def test_errors_and_info_tell_why_the_library_cannot_serve_a_card(
    driver, card, reason, emulation, monkeypatch
):
    emulation.emulation_choose_driver(driver)
    emulation.emulation_choose_card(card)
    for name in OPS:
        with pytest.raises(RuntimeError, match=re.escape(f"the CUDA library cannot serve: {reason}")):
            getattr(torch.ops.prunefuse, name)(*arguments(name))
        getattr(ON_CPU, name)(*arguments(name))
    assert state_of_cuda(emulation, monkeypatch) == f"loaded, but {reason}"
    emulation.emulation_choose_driver(13000)
    emulation.emulation_choose_card(9)
    assert torch.ops.prunefuse.top_b(torch.tensor([1.0, 3.0]), 1)[0].tolist() == [1]


@pytest.mark.parametrize(("driver", "card"), [(13000, 9), (13020, 12), (14000, 8)])
def test_info_has_nothing_to_say_against_a_card_that_is_served(driver, card, emulation, monkeypatch):
    emulation.emulation_choose_driver(driver)
    emulation.emulation_choose_card(card)
    assert state_of_cuda(emulation, monkeypatch) == "loaded"


def state_of_cuda(emulation, monkeypatch):
    """What `prunefuse info` prints of the CUDA library on a machine with the emulated card."""
    monkeypatch.setattr(loader, "cuda", emulation)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Emulated GPU")
    return loader.facts()["CUDA library"]
