"""k-means++ over outer products: every draw falls where float64 says, on the embeddings themselves."""

import numpy as np
import pytest
import torch
from truth import assert_seeding, distances_of_outer, eps

from prunefuse import ops
from prunefuse.ops import reference

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1, 1), (40, 3, 5), (257, 10, 4), (300, 17, 33), (600, 4, 64)]


def draws(b, seed=0):
    return torch.rand(b, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normal(rows, classes, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + classes)
    r, h = (torch.randn(rows, n, generator=generator, dtype=dtype) for n in (classes, width))
    return r, h


def integers(rows, classes, width, dtype=torch.float32):
    """Factors whose distances are exact in any order of summation, zeros and equals among them."""
    generator = torch.Generator().manual_seed(rows + classes)
    r, h = (torch.randint(-2, 3, (rows, n), generator=generator).to(dtype) for n in (classes, width))
    r[3::7], h[3::7] = r[:1], h[:1]
    return r, h


def seeding(r, h, u, device="cpu"):
    return ops.k_means_plus_plus(r.to(device), h.to(device), u.to(device)).cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_draw_falls_where_it_should(isa, dtype, shape):
    r, h = normal(*shape, dtype)
    u = draws(min(20, shape[0]))
    assert_seeding(r, h, u, seeding(r, h, u), slack=64 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_leave_no_room(isa, device, dtype, shape):
    """Draws fall on one row alone, on every level and device; of few rows all are picked, equals and zeros last."""
    r, h = integers(*shape, dtype)
    u = draws(min(shape[0], 40), seed=3)
    assert_seeding(r, h, u, seeding(r, h, u, device), slack=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_duplicates_do_not_cancel(isa, dtype):
    """Norms of 10^4 times their distances, squared 10^8: norms and products would leave nothing of them in float32."""
    generator = torch.Generator().manual_seed(1)
    r = torch.randn(1, 6, generator=generator) + 1e-4 * torch.randn(200, 6, generator=generator)
    h = torch.randn(1, 9, generator=generator) + 1e-4 * torch.randn(200, 9, generator=generator)
    r, h = r.to(dtype), h.to(dtype)
    u = draws(30)
    assert_seeding(r, h, u, seeding(r, h, u), slack=64 * eps(dtype))


def test_equals_wait_until_nothing_else_is_left(gpu):
    r, h = normal(60, 4, 6)
    r[10:50], h[10:50] = r[:1], h[:1]
    u = draws(60)
    picks = seeding(r, h, u, gpu).tolist()
    same = {0, *range(10, 50)}
    assert len(set(picks)) == 60
    assert len(same & set(picks[:20])) == 1
    assert set(picks[20:]) <= same


def test_equals_are_drawn_alike(gpu):
    """The draw number u takes row number u n of the n that are left."""
    r, h = torch.ones(11, 2), torch.ones(11, 3)
    for number in range(10):
        for at in (0.001, 0.5, 0.999):
            u = torch.tensor([0.3, (number + at) / 10], dtype=torch.float64)
            assert seeding(r, h, u, gpu).tolist() == [0, number + 1]


def test_the_ends_of_a_draw(gpu):
    r, h = integers(500, 3, 4)
    first = seeding(r, h, torch.zeros(1, dtype=torch.float64), gpu)
    away = np.flatnonzero(distances_of_outer(r, h, int(first)))
    for number, pick in ((0.0, away[0]), (1 - 2.0**-53, away[-1])):
        u = torch.tensor([0.0, number], dtype=torch.float64)
        assert seeding(r, h, u, gpu).tolist() == [int(first), pick]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_left_out(gpu, dtype):
    r, h = integers(12, 3, 4, dtype)
    big = 1e20 if dtype == torch.float32 else 1e160
    for row, (factor, value) in enumerate([(r, NAN), (h, NAN), (r, INF), (h, -INF), (r, big), (h, big)]):
        factor[2 * row, 1] = value
    picks = seeding(r, h, draws(12), gpu).tolist()
    assert sorted(picks[:6]) == [1, 3, 5, 7, 9, 11]
    assert picks[6:] == [-1] * 6
    # As large as rows may be, no sum overflows.
    r, h = normal(30, 3, 4, dtype)
    large = 2.0**59 if dtype == torch.float32 else 2.0**240
    u = draws(30)
    assert_seeding(r, h, u, seeding(r * large, h * large, u, gpu), 64 * eps(dtype))


def test_zero_factors_and_no_features(gpu):
    """All embeddings are the origin."""
    for r, h in ((torch.zeros(9, 3), torch.ones(9, 4)), (torch.ones(9, 3), torch.ones(9, 0))):
        assert sorted(seeding(r, h, draws(9), gpu).tolist()) == list(range(9))
    assert seeding(torch.zeros(0, 3), torch.zeros(0, 4), draws(0), gpu).tolist() == []


def test_views_with_gaps_are_read_as_they_are(gpu):
    r, h = integers(300, 5, 6)
    u = draws(20)
    expected = seeding(r, h, u, gpu)
    gaps = [torch.full((300, 9), NAN)[:, 1 : 1 + x.shape[1]].copy_(x) for x in (r, h)]
    assert torch.equal(seeding(*gaps, u.repeat_interleave(2)[::2], gpu), expected)
    assert torch.equal(seeding(r.T.contiguous().T, h, u, gpu), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_compile_and_flops(dtype, device):
    from torch.utils.flop_counter import FlopCounterMode

    arguments = [x.to(device) for x in (*integers(30, 3, 4, dtype), draws(5))]
    torch.library.opcheck(torch.ops.prunefuse.k_means_plus_plus.default, arguments)
    compiled = torch.compile(
        lambda r, h, u: ops.k_means_plus_plus(r, 2 * h, u), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(*arguments), ops.k_means_plus_plus(*arguments))
    with FlopCounterMode(display=False) as counter:
        ops.k_means_plus_plus(*arguments)
    assert counter.get_total_flops() == 2 * 30 * (3 + 4) * 5


def test_the_plain_torch_reference_agrees():
    r, h = integers(90, 4, 5, torch.float64)
    r[5, 1], h[7, 2] = NAN, INF
    u = draws(90)
    assert torch.equal(reference.k_means_plus_plus(r, h, u), ops.k_means_plus_plus(r, h, u))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_pool_on_cuda(dtype):
    """More rows than the grid holds at once; draws fall as on the CPU, whole numbers leave no room."""
    r, h = integers(200_000, 10, 16, dtype)
    u = draws(40)
    assert torch.equal(seeding(r, h, u, "cuda"), seeding(r, h, u))


def weighted(r, h, u, weights, device="cpu"):
    return ops.k_means_plus_plus(r.to(device), h.to(device), u.to(device), weights.to(device)).cpu()


def weights_of(rows):
    """Small whole numbers, zeros among them."""
    return torch.randint(0, 4, (rows,), generator=torch.Generator().manual_seed(rows)).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weighted_draws_fall_where_they_should(isa, device, dtype, shape):
    """Whole numbers: on one row alone. The first is drawn, too, by the weights."""
    r, h = integers(*shape, dtype)
    weights = weights_of(shape[0])
    weights[2::19] = NAN
    for seed in range(3):
        u = draws(min(shape[0], 40), seed)
        assert_seeding(r, h, u, weighted(r, h, u, weights, device), 0, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_weights(isa, dtype):
    r, h = normal(300, 1, 20, dtype)
    r = torch.ones_like(r)
    weights = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = draws(40)
    assert_seeding(r, h, u, weighted(r, h, u, weights), 64 * eps(dtype), weights)


def test_rows_without_a_usable_weight_are_left_out(gpu):
    r, h = integers(12, 3, 4)
    weights = torch.ones(12, dtype=torch.float64)
    weights[2], weights[4], weights[6] = NAN, INF, -1
    picks = weighted(r, h, draws(12), weights, gpu).tolist()
    assert sorted(picks[:9]) == [0, 1, 3, 5, 7, 8, 9, 10, 11]
    assert picks[9:] == [-1] * 3


def test_rows_of_weight_zero_wait_until_nothing_else_is_left(gpu):
    r, h = normal(20, 2, 3)
    weights = torch.zeros(20, dtype=torch.float64)
    weights[[3, 8, 15]] = 1
    picks = weighted(r, h, draws(20), weights, gpu).tolist()
    assert set(picks[:3]) == {3, 8, 15}
    assert sorted(picks) == list(range(20))


def test_opcheck_and_reference_of_weights(device):
    r, h = integers(90, 4, 5, torch.float64)
    r[5, 1] = NAN
    weights = weights_of(90)
    weights[11] = NAN
    arguments = [x.to(device) for x in (r, h, draws(90), weights)]
    torch.library.opcheck(torch.ops.prunefuse.k_means_plus_plus.default, arguments)
    assert torch.equal(
        reference.k_means_plus_plus(r, h, draws(90), weights), ops.k_means_plus_plus(*arguments).cpu()
    )
