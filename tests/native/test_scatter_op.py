"""The fuse scatter against NumPy's open-mesh indexing."""

import numpy as np
import pytest
import torch
from truth import SCATTER_DTYPES as DTYPES
from truth import of_scatter as expected
from truth import scatter_pair as pair

from prunefuse import ops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tensors_in_one_call(dtype, device):
    """Enough elements for several threads, with tensors that straddle their shares."""
    generator = np.random.default_rng(0)
    shapes = [
        ((64, 32, 3, 3), (30, 17, 3, 3)),
        ((64,), (30,)),
        ((), ()),
        ((7, 300), (7, 120)),
        ((500, 300), (499, 300)),
    ]
    pairs = [pair(generator, *shape, dtype) for shape in shapes * 3]
    truth = [expected(*p) for p in pairs]
    dense = [d.to(device) for d, _, _ in pairs]
    ops.scatter_(dense, [s.to(device) for _, s, _ in pairs], [k for _, _, k in pairs])
    for got, result in zip(dense, truth, strict=True):
        assert torch.equal(got.cpu(), result)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("run", [1, 2, 3, 4, 5, 9, 15, 16, 17, 25, 64, 65, 300])
def test_runs_of_every_length_reach_their_places_and_no_others(dtype, run):
    """Runs below, at and above a vector and a call of memcpy, in more rows than one thread takes."""
    generator = np.random.default_rng(run)
    n = 60 if run > 20 else 150
    dense, small, kept = pair(generator, (n, 41, run), (n // 2, 20, run), dtype)
    truth = expected(dense, small, kept)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result = dense.clone()
            ops.scatter_([result], [small], [kept])
            assert torch.equal(result, truth)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex128], ids=str
)
def test_runs_that_begin_and_end_anywhere(dtype, device):
    """As wide as 16 bytes allow where they do, and not where a row, a stride or an address does not."""
    generator = np.random.default_rng(7)
    pairs, truths, rooms = [], [], []
    for rank in range(1, 6):
        for run in (1, 2, 3, 4, 8, 12, 16, 32):
            for shift in (0, 1, 2):
                sizes, kept_sizes = (5, 3, 4, 2)[: rank - 1] + (run,), (3, 3, 2, 2)[: rank - 1] + (run,)
                dense, small, kept = pair(generator, sizes, kept_sizes, dtype)
                room = torch.zeros(dense.numel() + 2 * shift, dtype=dtype, device=device)
                shifted = room[shift : shift + dense.numel()].view(sizes).copy_(dense)
                pairs.append((shifted, small.to(device), kept))
                truths.append(expected(dense, small, kept))
                rooms.append(room)
    ops.scatter_([d for d, _, _ in pairs], [s for _, s, _ in pairs], [k for _, _, k in pairs])
    for (got, _, _), truth, room in zip(pairs, truths, rooms, strict=True):
        assert torch.equal(got.cpu(), truth)
        assert (room != 0).sum() == (truth != 0).sum()


def test_axes_of_every_length_are_divided_by_exactly(device):
    """Where an element goes is found by dividing by each axis' size: at and beside powers of two, and by 1."""
    dense, small, kept = [], [], []
    for size in (1, 2, 3, 7, 8, 9, 31, 33, 127, 128, 129, 641, 1000, 1023, 1025, 65535, 65537):
        rows = max(2, 3000 // size)
        for axis in (torch.arange(size), None):
            dense.append(torch.zeros(2 * rows, size, device=device))
            small.append(torch.arange(1.0, 1 + rows * size, device=device).view(rows, size))
            kept.append([torch.arange(0, 2 * rows, 2), axis])
    ops.scatter_(dense, small, kept)
    for to, source in zip(dense, small, strict=True):
        assert torch.equal(to[::2], source)
        assert (to[1::2] == 0).all()


def test_strided_and_channels_last_tensors(device):
    generator = np.random.default_rng(1)
    dense, small, kept = pair(generator, (8, 6, 5, 4), (3, 2, 5, 4), torch.float32)
    truth = expected(dense, small, kept)
    last = dense.to(device).to(memory_format=torch.channels_last)
    ops.scatter_([last], [small.to(device).to(memory_format=torch.channels_last)], [kept])
    assert torch.equal(last.cpu(), truth)
    room = torch.zeros(12, 20, device=device)
    view = room[1:11:2, ::3]
    ops.scatter_([view], [torch.ones(2, 7, device=device)], [[torch.tensor([0, 4]), None]])
    assert room.sum() == 14
    assert room[1, ::3].sum() == 7


def test_the_version_counter_moves_and_gradients_are_not_recorded():
    dense = torch.nn.Parameter(torch.zeros(4))
    before = dense._version
    ops.scatter_([dense], [torch.nn.Parameter(torch.ones(2))], [[torch.tensor([1, 3])]])
    assert dense._version > before
    assert dense.tolist() == [0, 1, 0, 1]
    assert dense.grad_fn is None


def test_nothing_is_written_where_an_argument_is_wrong():
    dense = [torch.zeros(4), torch.zeros(3, 3)]
    good = torch.ones(2)
    index = torch.tensor([0, 2])
    wrong = {
        "must have the same rank": ([good, torch.ones(9)], [[index], [None]]),
        "must have one dtype": ([good, torch.ones(3, 3).double()], [[index], [None, None]]),
        r"axis 0 of small\[1\] must have size 2, got 3": ([good, torch.ones(3, 3)], [[index], [index, None]]),
        r"must lie in \[0, 3\), got 3": ([good, torch.ones(2, 3)], [[index], [torch.tensor([0, 3]), None]]),
        r"must lie in \[0, 3\), got -1": ([good, torch.ones(2, 3)], [[index], [torch.tensor([-1, 0]), None]]),
        "kept must be Long": ([good, torch.ones(2, 3)], [[index], [torch.tensor([0, 1]).int(), None]]),
        "must hold as many tensors": ([good], [[index]]),
        "must have an entry for every axis": ([good, torch.ones(3, 3)], [[index], [None]]),
        "must have 3 entries": ([good, torch.ones(3, 3)], [[index], [None, None, None]]),
    }
    for message, (small, kept) in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            ops.scatter_(dense, small, kept)
    assert all((d == 0).all() for d in dense)


def many_pairs(dtype=torch.float32):
    generator = np.random.default_rng(5)
    shapes = [
        ((16, 8, 3, 3), (7, 5, 3, 3)),
        ((9,), (9,)),
        ((), ()),
        ((4, 0), (2, 0)),
        ((300, 200), (299, 101)),
    ]
    return tuple(zip(*(pair(generator, *shape, dtype) for shape in shapes * 20), strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_prepared_once_it_writes_the_values_of_every_call(dtype, threads, device):
    dense, small, kept = many_pairs(dtype)
    dense, small = [d.to(device) for d in dense], [s.to(device) for s in small]
    truth = [d.clone() for d in dense]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        write_back = ops.Scatter(dense, small, kept)
        for _ in range(3):
            versions = [d._version for d in dense]
            write_back()
            ops.scatter_(truth, small, kept)
            assert all(torch.equal(a, b) for a, b in zip(dense, truth, strict=True))
            assert all(d._version > version for d, version in zip(dense, versions, strict=True))
            for s in small:
                s.add_(1)
    finally:
        torch.set_num_threads(before)


def test_prepared_for_tensors_that_are_strided_or_move():
    room, other = torch.zeros(12, 20), torch.zeros(5, 7)
    dense = [room[1:11:2, ::3], torch.zeros(2, 4, 3, 3).to(memory_format=torch.channels_last)]
    small = [torch.ones(2, 7), torch.ones(2, 4, 3, 3)]
    kept = [[torch.tensor([0, 4]), None], [None] * 4]
    write_back = ops.Scatter(dense, small, kept)
    write_back()
    kept[0][0].fill_(99)  # the indices are its own
    small[0].mul_(2)
    write_back()
    assert room.sum() == 28
    assert room[1, ::3].sum() == 14
    assert (dense[1] == 1).all()
    dense[0].data = other
    small[1].data = torch.full((2, 4, 3, 3), 7.0).to(
        memory_format=torch.channels_last
    )  # no longer contiguous
    for value in (3.0, 5.0):
        small[0].fill_(value)
        write_back()
        assert other[0].tolist() == [value] * 7
        assert other.sum() == 14 * value
        assert room.sum() == 28
        assert (dense[1] == 7).all()
    small[1].data = torch.ones(2, 4, 3, 2)
    other.zero_()
    with pytest.raises(RuntimeError, match=r"axis 3 of small\[1\] must have size 3, got 2"):
        write_back()
    assert other.sum() == 0


def test_what_cannot_be_written_is_an_error_of_every_prepared_call():
    dense, kept = [torch.zeros(4), torch.zeros(3)], [[torch.tensor([0, 2])], [torch.tensor([0, 3])]]
    write_back = ops.Scatter(dense, [torch.ones(2), torch.ones(2)], kept)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"must lie in \[0, 3\), got 3"):
            write_back()
    assert all((d == 0).all() for d in dense)
    ops.Scatter([], [], [])()


def test_opcheck_and_compile(device):
    dense = [torch.zeros(4, 3, device=device), torch.zeros(4, device=device)]
    small = [torch.ones(2, 3, device=device), torch.ones(2, device=device)]
    kept = [torch.tensor([1, 2], device=device)]
    torch.library.opcheck(torch.ops.prunefuse.scatter_.default, (dense, small, kept, [0, -1, 0]))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def fuse(dense, small):
        torch.ops.prunefuse.scatter_(dense, small, kept, [0, -1, 0])
        return dense[0] + 1

    assert fuse(dense, small)[1].tolist() == [2, 2, 2]
    assert dense[0].sum() == 6


def test_the_plain_torch_reference_agrees():
    from prunefuse.ops import reference

    generator = np.random.default_rng(3)
    dense, small, kept = pair(generator, (5, 4, 3), (2, 4, 1), torch.float64)
    plain = dense.clone()
    reference.scatter_([plain], [small], [kept[0], kept[2]], [0, -1, 1])
    ops.scatter_([dense], [small], [kept])
    assert torch.equal(dense, plain)
