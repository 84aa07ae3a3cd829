"""Keeping the best b of a stream, the operator: what `StreamingTopB` is made of."""

import math

import pytest
import torch

from prunefuse import ops
from prunefuse.ops import reference

DTYPES = (torch.float32, torch.float64)


def empty(size, dtype, device="cpu"):
    """best, indices, threshold, counts."""
    return (
        torch.zeros(size, dtype=dtype, device=device),
        torch.zeros(size, dtype=torch.int64, device=device),
        torch.full((1,), -math.inf, dtype=dtype, device=device),
        torch.tensor([0, 0, -1], device=device),
    )


def kept(state, b):
    """The b best among the candidates, by the reference."""
    best, indices, _, counts = (tensor.cpu() for tensor in state)
    own, order = indices[: counts[0]].sort(stable=True)
    positions, utilities = reference.top_b(best[: counts[0]][order], b)
    return own[positions].tolist(), utilities.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "ascending"])
@pytest.mark.parametrize("given", [None, "ascending", "shuffled"])
def test_the_best_stay_among_few_candidates(dtype, kind, given, isa, device):
    n, b, size = 20_000, 500, 3_000
    generator = torch.Generator().manual_seed(0)
    utilities = {
        "random": torch.randn(n, generator=generator),
        "ties": torch.randint(0, 4, (n,), generator=generator).float(),
        "constant": torch.full((n,), -math.inf),
        "ascending": torch.arange(n).float(),
    }[kind].to(dtype)
    utilities[::11] = math.nan
    order = torch.randperm(n, generator=generator) if given == "shuffled" else torch.arange(n)
    state = empty(size, dtype, device)
    # Beyond the room for candidates at once, and little by little.
    for rows in order.split([10_000, 6_000, *[500] * 7, 499, 1]):
        own = None if given is None else (rows - 7).to(device)
        ops.keep_best_(*state, b, utilities[rows].to(device), own)
    start = 0 if given is None else -7
    expected, values = reference.top_b(utilities, b)
    assert kept(state, b) == ((expected + start).tolist(), values.tolist())
    assert state[3][0] <= size - 2048
    assert state[3][1:].tolist() == [int(utilities.isnan().sum()), n - 1 + start]
    assert (state[0][: state[3][0]] >= state[2]).sum() >= b


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_rows_that_were_given_twice_no_more_are_kept_than_asked_for(dtype, device):
    """Of equal utilities and equal indices any may stay, but b of them."""
    b, size = 3, 2051
    state = empty(size, dtype, device)
    batch = torch.zeros(6000, dtype=dtype, device=device)
    ops.keep_best_(*state, b, batch, torch.full((6000,), 5, device=device))
    assert state[3].tolist() == [3, 0, 5]
    ops.keep_best_(*state, b, batch[:4], torch.tensor([5, 4, 5, -9], device=device))
    assert kept(state, b) == ([-9, 4, 5], [0.0] * 3)


def test_the_plain_torch_reference_agrees():
    utilities = torch.tensor([1.0, math.nan, 3.0, 1.0, 3.0, -math.inf])
    ours, plain = empty(2051, torch.float32), empty(2051, torch.float32)
    for batch, own in (
        (utilities, None),
        (utilities, torch.tensor([9, 8, 7, 3, 2, 1])),
        (utilities[:0], None),
    ):
        ops.keep_best_(*ours, 3, batch, own)
        reference.keep_best_(*plain, 3, batch, own)
    assert kept(ours, 3) == kept(plain, 3) == ([2, 2, 4], [3.0, 3.0, 3.0])
    assert ours[3][1:].tolist() == plain[3][1:].tolist() == [2, 9]


def test_opcheck_and_the_version_counter():
    batch = torch.rand(9)
    for own in (None, torch.arange(9)):
        state = empty(2060, torch.float32)
        torch.library.opcheck(torch.ops.prunefuse.keep_best_.default, (*state, 3, batch, own))
    before = [tensor._version for tensor in state]
    ops.keep_best_(*state, 3, batch, None)
    assert all(tensor._version > version for tensor, version in zip(state, before, strict=True))


def test_compile():
    state = empty(2060, torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(batch):
        torch.ops.prunefuse.keep_best_(*state, 2, batch + 1, None)
        return state[3] + 0

    assert step(torch.tensor([1.0, 3.0, 2.0])).tolist() == [3, 0, 2]
    assert kept(state, 2) == ([1, 2], [4.0, 3.0])


def test_nothing_is_written_where_an_argument_is_wrong():
    best, indices, threshold, counts = empty(2060, torch.float32)
    batch = torch.rand(4)
    long = torch.arange(4)
    wrong = {
        r"b must lie in \[1, 12\], 2048 less than the size of best, got 13": ((), 13, batch, None),
        "b must lie in": ((), 0, batch, None),
        "batch must be Float, got Double": ((), 3, batch.double(), None),
        r"batch must have 1 dimension\(s\), got 2": ((), 3, batch[None], None),
        "batch must be contiguous": ((), 3, torch.rand(8)[::2], None),
        "batch_indices must be Long, got Int": ((), 3, batch, long.int()),
        "batch_indices must have size 4, got 3": ((), 3, batch, long[:3]),
        "indices must have size 2060, got 2059": ((best, indices[1:], threshold, counts), 3, batch, None),
        "threshold must be Float, got Double": ((best, indices, threshold.double(), counts), 3, batch, None),
        "counts must have size 3, got 2": ((best, indices, threshold, counts[:2]), 3, batch, None),
        r"counts\[0\] must lie in \[0, 12\], got 13": (
            (best, indices, threshold, counts + 13),
            3,
            batch,
            None,
        ),
        "best must be float32 or float64, got Half": (
            (best.half(), indices, threshold.half(), counts),
            3,
            batch.half(),
            None,
        ),
    }
    for message, (state, b, rows, own) in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            ops.keep_best_(*(state or (best, indices, threshold, counts)), b, rows, own)
    assert counts.tolist() == [0, 0, -1]
    assert not best.any()
