"""Greedy k-center against a float64 loop over all distances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import of_k_center as truth

import prunefuse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "width"), [(50, 1), (200, 3), (301, 17), (400, 64), (150, 130)])
def test_same_picks_as_the_definition(isa, dtype, rows, width):
    features = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    assert prunefuse.k_center_greedy(features, 20, start=3).tolist() == truth(features, 20, start=3)
    labeled = [5, 9, 40]
    assert prunefuse.k_center_greedy(features, 20, labeled).tolist() == truth(features, 20, labeled)
    assert prunefuse.k_center_greedy(features, 9, labeled, start=0).tolist() == truth(features, 9, labeled, 0)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_an_offset_does_not_blur_the_distances(isa, offset):
    """Cached norms would cancel: features far from the origin, and near-duplicates."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(600, 20, generator=generator) + offset
    assert prunefuse.k_center_greedy(features, 60, start=5).tolist() == truth(features, 60, start=5)
    clusters = 50 * torch.randn(5, 20, generator=generator)
    close = clusters[torch.randint(0, 5, (400,), generator=generator)] + offset
    close += 1e-3 * torch.randn(400, 20, generator=generator)
    assert prunefuse.k_center_greedy(close, 40, start=0).tolist() == truth(close, 40, start=0)


@pytest.mark.parametrize("scale", [1e-43, 1e-38, 1e-25, 1e-12, 1e15, 1e30])
def test_features_of_any_magnitude(scale):
    features = torch.tensor([[0.0, 0], [1, 0], [3, 0], [10, 0], [4, 1]]) * scale
    assert prunefuse.k_center_greedy(features, 4, start=0).tolist() == [0, 3, 4, 2]
    assert prunefuse.k_center_greedy(features, 2, labeled=[0, 4]).tolist() == [3, 2]
    assert prunefuse.k_center_greedy(features, 2).tolist() == [2, 3]  # the mean is (3.6, 0.2) * scale


def test_same_picks_on_every_device(device):
    features = torch.randn(500, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    picks = prunefuse.k_center_greedy(features.to(device), 30, labeled=[1, 2])
    assert picks.tolist() == truth(features, 30, [1, 2])


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 5))
def test_picks_are_distinct_unlabeled_and_farthest(data, rows, width):
    """Integer features make float distances exact, so that ties must go to the lower index."""
    values = data.draw(st.lists(st.integers(-9, 9), min_size=rows * width, max_size=rows * width))
    features = torch.tensor(values, dtype=torch.float32).reshape(rows, width)
    labeled = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
    b = data.draw(st.integers(0, rows - len(labeled)))
    assert prunefuse.k_center_greedy(features, b, labeled).tolist() == truth(features, b, labeled)


def test_threads_and_chunks_do_not_change_the_picks():
    features = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = prunefuse.k_center_greedy(features, 50, start=0)
        torch.set_num_threads(2)
        two = prunefuse.k_center_greedy(features, 50, start=0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


def test_default_start_is_the_row_nearest_to_the_mean():
    features = torch.tensor([[0.0, 0], [10, 0], [0, 10], [3, 3], [-9, 2]])
    assert prunefuse.k_center_greedy(features, 1).tolist() == [3]
    features[1] = float("nan")  # now the mean is (-1.5, 3.75)
    assert prunefuse.k_center_greedy(features, 1).tolist() == [0]


def test_rows_that_are_not_finite_are_left_out():
    features = torch.randn(10, 3)
    features[2, 1] = float("nan")
    features[7, 0] = float("inf")
    picks = prunefuse.k_center_greedy(features, 8, start=0)
    assert sorted(picks.tolist()) == [0, 1, 3, 4, 5, 6, 8, 9]
    with pytest.raises(ValueError, match="b is 9, but only 8 of 10 rows can be picked"):
        prunefuse.k_center_greedy(features, 9, start=0)
    picks = prunefuse.k_center_greedy(features, 8, labeled=[2])
    assert sorted(picks.tolist()) == [0, 1, 3, 4, 5, 6, 8, 9]
    with pytest.raises(ValueError, match="start must be a row of finite features, got row 2"):
        prunefuse.k_center_greedy(features, 1, start=2)


def test_numpy_in_numpy_out_and_half_precision():
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    picks = prunefuse.k_center_greedy(features, 4, labeled=np.array([3]))
    assert isinstance(picks, np.ndarray)
    assert picks.tolist() == truth(torch.from_numpy(features), 4, [3])
    half = torch.from_numpy(features).half()
    assert prunefuse.k_center_greedy(half, 4, start=1).tolist() == truth(half, 4, start=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: prunefuse.k_center_greedy(x, 11),
            ValueError,
            "b must be at most the number of rows, 10, got 11",
        ),
        (
            lambda x: prunefuse.k_center_greedy(x, 2, labeled=[10]),
            ValueError,
            r"labeled must hold rows .* got 10",
        ),
        (
            lambda x: prunefuse.k_center_greedy(x, 2, labeled=[-1]),
            ValueError,
            r"labeled must hold rows .* got -1",
        ),
        (
            lambda x: prunefuse.k_center_greedy(x, 2, labeled=[0.5]),
            TypeError,
            "labeled must be a sequence of row",
        ),
        (lambda x: prunefuse.k_center_greedy(x, 2, start=10), ValueError, "start must be a row of features"),
        (lambda x: prunefuse.k_center_greedy(x, 2, [4], start=4), ValueError, "start is labeled already: 4"),
        (
            lambda x: prunefuse.k_center_greedy(x, 2, labeled=range(9)),
            ValueError,
            "only 1 of 10 rows can be picked",
        ),
        (
            lambda x: prunefuse.k_center_greedy(x[0], 2),
            ValueError,
            r"features must have shape \(N, d\), got \(3,\)",
        ),
        (lambda x: prunefuse.k_center_greedy(x.int(), 2), TypeError, "features must be float16"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(10, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_and_compile(dtype, device):
    features = torch.randn(12, 5, dtype=dtype, device=device)
    labeled = torch.tensor([2, 7], device=device)
    torch.library.opcheck(torch.ops.prunefuse.k_center_greedy.default, (features, labeled, 3, 4))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def picks(x):
        return torch.ops.prunefuse.k_center_greedy(x * 2, labeled, 3, -1)

    assert torch.equal(picks(features), prunefuse.k_center_greedy(features * 2, 3, [2, 7]))


def test_the_plain_torch_reference_agrees():
    from prunefuse.ops import reference

    features = torch.randn(60, 4, dtype=torch.float64)
    features[5] = float("nan")
    for labeled, start in (([], 9), ([1, 5], -1), ([1, 5], 2)):
        known = torch.tensor(labeled, dtype=torch.int64)
        ours = torch.ops.prunefuse.k_center_greedy(features, known, 60, start)
        assert torch.equal(ours, reference.k_center_greedy(features, known, 60, start))


def integers(rows, width, seed, dtype=torch.float32):
    """Features whose distances are exact in any order of summation, so that ties are ties everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, (rows, width), generator=generator).to(dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (40, 3), (257, 4), (1000, 17), (5000, 64), (3001, 130), (70_000, 8)]
)
def test_exact_picks_on_cuda(dtype, rows, width):
    features = integers(rows, width, rows, dtype)
    on_gpu = features.cuda()
    for known in ((), (rows - 1,), tuple(range(0, rows, max(1, rows // 19)))):
        labeled = torch.tensor(known, dtype=torch.int64)
        start = rows // 2 if rows // 2 not in known else -1
        if start < 0 and not known:
            continue
        b = min(30, rows)
        expected = torch.ops.prunefuse.k_center_greedy(features, labeled, b, start)
        got = torch.ops.prunefuse.k_center_greedy(on_gpu, labeled.cuda(), b, start)
        assert got.tolist() == expected.tolist()
    # Neither rows that start at no 16-byte boundary nor a view with gaps change the picks.
    shifted = (
        torch.empty(features.numel() + 1, dtype=dtype, device="cuda")[1:].view(rows, width).copy_(on_gpu)
    )
    gaps = torch.empty(rows, width + 3, dtype=dtype, device="cuda")[:, :width].copy_(on_gpu)
    labeled = torch.tensor([0], device="cuda")
    expected = torch.ops.prunefuse.k_center_greedy(on_gpu, labeled, b, -1)
    for same in (shifted, gaps):
        assert torch.equal(torch.ops.prunefuse.k_center_greedy(same, labeled, b, -1), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_every_pick_on_cuda_is_farthest_but_for_rounding(width, offset):
    """Random features: of rows that are equally far in float32 any may be picked, of others only the farthest."""
    features = torch.randn(20_000, width, generator=torch.Generator().manual_seed(width)) + offset
    picks = prunefuse.k_center_greedy(features.cuda(), 100, labeled=[7, 8, 9]).cpu()
    assert len(set(picks.tolist()) | {7, 8, 9}) == 103
    x = features.double()
    nearest = (x[:, None] - x[None, [7, 8, 9]]).square().sum(2).amin(1)
    for pick in picks:
        assert nearest[pick] >= nearest.max() * (1 - 1e-5)
        nearest = nearest.minimum((x - x[pick]).square().sum(1))


@pytest.mark.cuda
def test_a_large_pool_on_cuda():
    """More rows than the grid takes at once, and offsets beyond 2^31 values."""
    features = integers(4_300_000, 4, 1).cuda().repeat(1, 128)
    features[4_200_000] += 100
    picks = torch.ops.prunefuse.k_center_greedy(features, torch.tensor([5], device="cuda"), 3, -1)
    one = torch.ops.prunefuse.k_center_greedy(features[:, :4].cpu(), torch.tensor([5]), 3, -1)
    assert picks.tolist() == one.tolist()
    assert picks[0] == 4_200_000


def test_rows_that_cannot_be_picked_on_cuda(gpu):
    features = integers(9, 4, 2).to(gpu)
    features[2, 1], features[4, 0], features[6, 3] = float("nan"), float("-inf"), 3e38
    labeled = torch.tensor([2, 1, 1, -5, 9, 1 << 40], device=gpu)  # not finite, twice, and out of range
    picks = torch.ops.prunefuse.k_center_greedy(features, labeled, 9, -1).tolist()
    assert sorted(picks[:5]) == [0, 3, 5, 7, 8]
    assert picks[5:] == [-1] * 4
    only = torch.tensor([2], device=gpu)  # no center at all: the lowest row that can be picked
    assert torch.ops.prunefuse.k_center_greedy(features, only, 2, -1)[0] == 0


@pytest.mark.cuda
def test_runs_on_the_current_stream_and_in_a_graph():
    features = integers(30_000, 32, 3).cuda()
    labeled = torch.tensor([1, 2], device="cuda")
    expected = torch.ops.prunefuse.k_center_greedy(features, labeled, 20, -1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        moved = features * 1
        got = torch.ops.prunefuse.k_center_greedy(moved, labeled, 20, -1)
    stream.synchronize()
    assert torch.equal(got, expected)
    static = torch.zeros_like(features)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.prunefuse.k_center_greedy(static, labeled, 20, -1)
    static.copy_(features)
    graph.replay()
    assert torch.equal(captured, expected)


def test_without_the_cuda_library_the_reason_is_given(monkeypatch):
    from prunefuse.ops import loader

    class Elsewhere(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(loader, "why_no_cuda", "not built")
    features = torch.zeros(2, 2).as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match=r"k_center_greedy: the CUDA library is not loaded \(not built\)"):
        prunefuse.ops.k_center_greedy(features, torch.tensor([0]), 1, -1)


def weights_of(rows, dtype=torch.float64):
    """Small whole numbers: weighted distances stay exact."""
    return torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(rows + 1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "width"), [(50, 1), (200, 3), (301, 17), (400, 64)])
def test_weighted_picks_and_least_distances(isa, device, dtype, rows, width):
    """Whole numbers: ties go to the lower index on every level and device."""
    features = integers(rows, width, rows, dtype)
    labeled = [5, 9, 40]
    known = torch.tensor(labeled, device=device)
    for weights, least in ((weights_of(rows), 0), (None, 4), (weights_of(rows), 3), (weights_of(rows), 1e9)):
        factors = None if weights is None else weights.square().to(dtype).to(device)
        for start in (-1, 3):
            picks = torch.ops.prunefuse.k_center_greedy(
                features.to(device), known, 30, start, factors, float(least) ** 2
            )
            expected = truth(features, 30, labeled, None if start < 0 else start, weights, least)
            assert picks.tolist() == expected, (least, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_weights(isa, dtype):
    """Against float64: of what lies apart by more than rounding, each pick is the farthest."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(500, 20, generator=generator, dtype=dtype)
    weights = torch.rand(500, generator=generator, dtype=dtype) + 0.1
    picks = prunefuse.k_center_greedy(x, 60, [1, 2], weights=weights, min_distance=2.5)
    assert picks.tolist() == truth(x, 60, [1, 2], weights=weights, least=2.5)


def test_rows_without_a_usable_weight_are_left_out(gpu):
    features, labeled = integers(12, 4, 2).to(gpu), torch.tensor([3], device=gpu)
    weights = torch.ones(12, device=gpu)
    weights[2], weights[4], weights[6] = float("nan"), float("inf"), -1
    picks = torch.ops.prunefuse.k_center_greedy(features, labeled, 12, -1, weights).tolist()
    assert sorted(picks[:8]) == [0, 1, 5, 7, 8, 9, 10, 11]
    assert picks[8:] == [-1] * 4


def test_weights_of_a_power_of_two_change_nothing():
    features = torch.randn(300, 8)
    expected = prunefuse.k_center_greedy(features, 40, [0])
    for weight in (1.0, 2.0**-70, 2.0**90):
        weights = torch.full((300,), weight, dtype=torch.float64)
        assert torch.equal(prunefuse.k_center_greedy(features, 40, [0], weights=weights), expected)
    alone = prunefuse.k_center_greedy(features, 5)
    assert torch.equal(prunefuse.k_center_greedy(features, 5, weights=torch.ones(300)), alone)


def test_the_first_of_weighted_rows_is_the_heaviest_nearest_to_the_mean():
    features = torch.tensor([[0.0], [1.0], [4.0], [5.0], [10.0]])  # the mean is 4
    weights = np.array([1, 2, 1, 2, 2.0])
    assert prunefuse.k_center_greedy(features.numpy(), 1, weights=weights).tolist() == [3]
    assert prunefuse.k_center_greedy(
        features, 1, weights=torch.from_numpy(weights), exclude=[3]
    ).tolist() == [1]


def test_what_is_excluded_or_has_no_weight_is_not_picked_and_is_no_center():
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0], [10.0]])
    assert prunefuse.k_center_greedy(features, 2, [0], exclude=[5]).tolist() == [4, 3]
    mask = torch.tensor([False] * 5 + [True])
    assert prunefuse.k_center_greedy(features, 2, [0], exclude=mask).tolist() == [4, 3]
    weights = torch.tensor([1, 1, 1, 1, 1, float("nan")])
    assert prunefuse.k_center_greedy(features, 2, [0], weights=weights).tolist() == [4, 3]
    # What is labeled is a center in any case, excluded or not, whatever its weight.
    assert prunefuse.k_center_greedy(features, 1, [5], weights=weights, exclude=[5]).tolist() == [0]


def test_a_least_distance_is_told_where_too_few_keep_it():
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0], [10.0]])
    picks = prunefuse.k_center_greedy(features, 2, [0], min_distance=2)
    assert picks.tolist() == [5, 3]
    with pytest.raises(
        prunefuse.errors.TooFewRowsError,
        match=r"b is 4, but only 2 of 6 rows can be picked \(.* or nearer than 2.0 to a picked one\)",
    ) as caught:
        prunefuse.k_center_greedy(features, 4, [0], min_distance=2)
    assert (caught.value.selectable, caught.value.rows) == (2, 6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": torch.ones(9)}, ValueError, r"weights must have shape \(10,\), .*got \(9,\)"),
        ({"weights": torch.ones(10).int()}, TypeError, "weights must be float16"),
        ({"weights": [1.0] * 10}, TypeError, "weights must be a torch tensor"),
        ({"weights": -torch.ones(10)}, ValueError, "weights must be finite and at least 0, got -1.0"),
        ({"weights": torch.ones(10) / 0}, ValueError, "weights must be finite and at least 0, got inf"),
        ({"min_distance": -1}, ValueError, "min_distance must be a finite number, 0 or more, got -1"),
        ({"min_distance": float("nan")}, ValueError, "min_distance must be a finite"),
        ({"min_distance": "1"}, TypeError, "min_distance must be a number, got str"),
        ({"exclude": [10]}, ValueError, r"exclude must hold rows of features \(0 to 9\), got 10"),
        ({"exclude": [0.5]}, TypeError, "exclude must be a sequence of row"),
        ({"exclude": [True, False]}, ValueError, "exclude must be a mask of the 10 rows"),
        ({"exclude": range(10)}, ValueError, r"only 0 of 10 .*labeled, excluded or not finite"),
        ({"start": 4, "exclude": [4]}, ValueError, "start is excluded: 4"),
        (
            {"start": 4, "weights": torch.full((10,), float("nan"))},
            ValueError,
            "start must be a row with a weight, got row 4",
        ),
        (
            {"start": 4, "labeled": [4 + 1], "min_distance": 1e3},
            ValueError,
            "start must be at least min_distance, 1000.0, from every labeled row, got row 4",
        ),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        prunefuse.k_center_greedy(torch.randn(10, 3), 2, **options)


def test_opcheck_and_reference_of_weights_and_least_distances(device):
    features = integers(60, 4, 7, torch.float64)
    features[5] = float("nan")
    weights = weights_of(60)
    weights[9] = float("nan")
    arguments = (features, torch.tensor([1, 5]), 60, 2, weights, 9.0)
    on_device = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.prunefuse.k_center_greedy.default, on_device)
    from prunefuse.ops import reference

    expected = reference.k_center_greedy(*arguments)
    assert torch.equal(torch.ops.prunefuse.k_center_greedy(*on_device).cpu(), expected)
    compiled = torch.compile(
        lambda x, w: torch.ops.prunefuse.k_center_greedy(x, on_device[1], 60, 2, w, 9.0),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(on_device[0], on_device[4]).cpu(), expected)
