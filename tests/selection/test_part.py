"""A random part of a pool: of the right size, of what is left, and every row as likely as any other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse.selection import random_part


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(0, 60), st.data(), st.integers(0, 2**31))
def test_a_part_of_what_is_left(rows, count, data, seed):
    some = st.lists(st.integers(0, rows - 1), max_size=rows) if rows else st.just([])
    labeled, exclude = data.draw(some), data.draw(some)
    part = random_part(
        rows, count, labeled=labeled, exclude=exclude, generator=torch.Generator().manual_seed(seed)
    )
    free = set(range(rows)) - set(labeled) - set(exclude)
    assert part.dtype == torch.int64
    assert part.tolist() == sorted(set(part.tolist()))
    assert set(part.tolist()) <= free
    assert len(part) == min(count, len(free))


def test_every_row_is_as_likely():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(8)
    for _ in range(4000):
        counts[random_part(8, 3, labeled=[2], generator=generator)] += 1
    expected = torch.full((8,), 3 / 7).index_fill(0, torch.tensor([2]), 0)
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_a_seed_gives_one_part_and_global_generators_stay():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    parts = [
        random_part(1000, 20),
        random_part(1000, 20),
        random_part(1000, 20, generator=torch.Generator().manual_seed(4)),
    ]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])
    mask = np.zeros(1000, dtype=bool)
    mask[:900] = True
    assert random_part(1000, 100, labeled=mask).tolist() == list(range(900, 1000))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random_part(-1, 2), ValueError, "rows must be at least 0, got -1"),
        (lambda: random_part(5, -2), ValueError, "count must be at least 0, got -2"),
        (lambda: random_part(5, 2.0), TypeError, "count must be an integer"),
        (lambda: random_part(5, True), TypeError, "count must be an integer"),
        (
            lambda: random_part(5, 2, exclude=[5]),
            ValueError,
            r"exclude must hold rows of the pool \(0 to 4\), got 5",
        ),
        (lambda: random_part(5, 2, labeled=[-1]), ValueError, r"labeled must hold rows of the pool"),
        (
            lambda: random_part(5, 2, labeled=[True]),
            ValueError,
            "labeled must be a mask of the 5 rows of the pool",
        ),
        (lambda: random_part(5, 2, generator=0), TypeError, "generator must be a torch.Generator"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
