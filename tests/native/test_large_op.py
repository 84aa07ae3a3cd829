"""Elements beyond the 2^31st, of every operator: in views whose few rows lie far apart, and (slow) of pools that large."""

import math

import numpy as np
import pytest
import torch
from truth import assert_dynamics, of_neighbors

from prunefuse import ops

FAR = (
    2**30 + 8
)  # of three rows that far apart, the last begins beyond 2^31 elements, at a multiple of 16 bytes


def untouched(elements, dtype, device):
    """Memory with nothing in it: of what is not written, the CPU's system gives none."""
    bytes_ = elements * torch.empty(0, dtype=dtype).element_size()
    if device == "cpu":
        return torch.from_numpy(np.empty(bytes_, np.uint8)).view(dtype)
    if torch.cuda.mem_get_info()[0] < bytes_ + (1 << 30):
        pytest.skip(f"needs {bytes_ >> 30} GB of the GPU's memory")
    return torch.empty(bytes_, dtype=torch.uint8, device=device).view(dtype)


def far_apart(values, device, axis=0, by=FAR):
    """The same values, those of `axis` (at most three) that many elements from each other."""
    order = [axis, *(i for i in range(values.dim()) if i != axis)]
    inside = values.permute(order)[0]
    memory = untouched((values.shape[axis] - 1) * by + inside.numel(), values.dtype, device)
    view = memory.as_strided([values.shape[i] for i in order], [by, *inside.contiguous().stride()])
    view = view.permute([order.index(i) for i in range(values.dim())])
    return view.copy_(values)


def some(*shape, dtype=torch.float32):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))).to(dtype)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_and_statistics(dtype, axis, device):
    near = some(*((3, 70) if axis == 0 else (70, 3)), dtype=dtype)
    far = far_apart(near, device, axis)
    near = near.to(device)
    for got, expected in (
        (ops.score(far, [0, 1, 2, 3, 4], False, 0.7), ops.score(near, [0, 1, 2, 3, 4], False, 0.7)),
        *zip(ops.statistics(far, False, 1.0), ops.statistics(near, False, 1.0), strict=True),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    states = [torch.zeros(6, len(near), device=device) for _ in range(2)]
    for state, logits in zip(states, (near, far), strict=True):
        state[:2] = -math.inf
        ops.absorb_(state, logits, 0.7)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ensembles(axis, device):
    near = some(*[3 if i == axis else n for i, n in enumerate((2, 5, 1100))], dtype=torch.bfloat16)
    got = ops.score_ensemble(far_apart(near, device, axis), [0, 1, 2, 3], False, 1.0)
    expected = ops.score_ensemble(near.to(device), [0, 1, 2, 3], False, 1.0)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_dynamics(axis, device):
    near = some(*((3, 70) if axis == 0 else (70, 3)), dtype=torch.float16)
    labels = torch.arange(len(near)) % near.shape[1]
    got = ops.dynamics(far_apart(near, device, axis), labels.to(device))
    torch.testing.assert_close(got, ops.dynamics(near.to(device), labels.to(device)), rtol=1e-5, atol=1e-6)
    if device == "cpu":
        assert_dynamics(near, labels)


def test_divergences(device):
    """Of samples whose logarithms are kept beyond 2^31 elements."""
    rows, classes = 2**21 + 3, 1024
    kept = untouched(rows * classes, torch.float16, device).view(rows, classes)
    samples = torch.tensor([rows - 1, 4], device=device)
    kept[samples] = 1
    logits = some(2, 2, classes).to(device)
    few = torch.ones(2, classes, dtype=torch.float16, device=device)
    for step in logits:
        got = ops.divergence_(kept, step, samples, 1e-8)
        expected = ops.divergence_(few, step, torch.tensor([0, 1], device=device), 1e-8)
        assert torch.equal(got, expected)
    assert (got > 0).all()
    assert torch.equal(kept[samples], few)


def test_claims(device):
    seen = untouched(2**31 + 9, torch.int32, device)
    indices = torch.tensor([2**31 + 8, 2**31, 7], device=device)
    seen[indices] = 0
    rejected = torch.zeros(1, dtype=torch.int64, device=device)
    assert torch.equal(ops.claim_(seen, rejected, indices, None, 0), indices)
    assert seen[indices].tolist() == [1, 1, 1]
    assert rejected == 0


def test_histories(device):
    """Rings of 8 bytes a value: 17 GB, of which little is touched."""
    rows, size = 2**15 + 3, 2**16
    ring = untouched(rows * size, torch.float64, device).view(rows, size)
    samples = torch.tensor([rows - 1, 2], device=device)
    counts = torch.zeros(rows, dtype=torch.int64, device=device)
    sums = torch.zeros(2, rows, dtype=torch.float64, device=device)
    counts[samples] = size - 3  # the next values end the ring, the last of them a window of 3
    for value in (0.1, 0.5, 0.3):
        values = torch.full((2,), value, dtype=torch.float64, device=device)
        ops.push_(ring, counts, sums, values, samples, 3, 2.0, 0.0, 1.0)
        # The window that ends here began size - 3 values ago: let it be known.
        ring[samples, :3] = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64, device=device)
    assert ring[rows - 1, size - 3 :].tolist() == [0.1, 0.5, 0.3]
    assert counts[samples].tolist() == [size, size]
    torch.testing.assert_close(sums[0, samples].cpu(), torch.tensor([7.0, 7.0]).double().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_top_b(dtype, device):
    by = FAR if dtype == torch.float32 else FAR // 2
    utilities = far_apart(
        torch.tensor([[1.0], [math.nan], [5.0], [3.0], [5.0]], dtype=dtype)[:, 0], device, by=by
    )
    indices, best = ops.top_b(utilities, 4)
    assert indices.tolist() == [2, 4, 3, 0]
    assert best.tolist() == [5, 5, 3, 1]


def test_kept_best_have_indices_beyond(device):
    state = (
        torch.zeros(2052, device=device),
        torch.zeros(2052, dtype=torch.int64, device=device),
        torch.full((1,), -math.inf, device=device),
        torch.tensor([0, 0, 2**33], device=device),
    )
    ops.keep_best_(*state, 2, torch.tensor([1.0, 4.0, 2.0], device=device), None)
    assert state[1][:3].sort().values.tolist() == [2**33 + 1, 2**33 + 2, 2**33 + 3]
    assert state[3].tolist() == [3, 0, 2**33 + 3]


def test_scatters(device):
    dense = untouched(2**31 + 100, torch.uint8, device)
    places = torch.tensor([3, 2**31 - 1, 2**31 + 99])
    wide = untouched(3 * FAR, torch.uint8, device).as_strided((3, 4), (FAR, 1))
    small = torch.tensor([7, 8, 9], dtype=torch.uint8, device=device)
    ops.scatter_(
        [dense, wide], [small, small[:, None].repeat(1, 2)], [[places], [None, torch.tensor([1, 3])]]
    )
    assert dense[places.to(device)].tolist() == [7, 8, 9]
    assert wide[:, [1, 3]].tolist() == [[7, 7], [8, 8], [9, 9]]


@pytest.mark.slow
def test_a_large_pool_is_scored(device):
    rows, classes = 2**21 + 5, 1024
    pool = untouched(rows * classes, torch.float16, device).view(rows, classes).zero_()
    pool[-9:] = some(9, classes, dtype=torch.float16).to(device)
    got = ops.score(pool, [0, 1, 2], False, 1.0)
    assert torch.equal(got[:, -9:], ops.score(pool[-9:], [0, 1, 2], False, 1.0))
    torch.testing.assert_close(got[2, : 2**20].mean().cpu(), torch.tensor(math.log(classes)))
    got = ops.dynamics(pool, torch.arange(rows, device=device) % classes)
    assert torch.equal(got[:, -9:], ops.dynamics(pool[-9:], torch.arange(rows, device=device)[-9:] % classes))


@pytest.mark.slow
def test_a_large_pool_is_picked_from(device):
    """`top_b` takes 26 GB of a GPU's memory for as many rows."""
    rows = 2**31 + 11
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 64 << 30:
        pytest.skip("needs 64 GB of the GPU's memory")
    utilities = untouched(rows, torch.float32, device).zero_()
    utilities[[5, rows - 1, 2**31 + 1]] = torch.tensor([1.0, 3.0, 2.0], device=device)
    utilities[2**31] = math.nan
    indices, best = ops.top_b(utilities, 4)
    assert indices.tolist() == [rows - 1, 2**31 + 1, 5, 0]
    assert best.tolist() == [3, 2, 1, 0]
    state = (
        torch.zeros(2052, device=device),
        torch.zeros(2052, dtype=torch.int64, device=device),
        torch.full((1,), -math.inf, device=device),
        torch.tensor([0, 0, -1], device=device),
    )
    ops.keep_best_(*state, 4, utilities, None)
    assert state[3][1:].tolist() == [1, rows - 1]
    count = int(state[3][0])
    best_first = state[0][:count].argsort(descending=True)[:3]
    assert state[1][best_first].tolist() == [rows - 1, 2**31 + 1, 5]


@pytest.mark.slow
def test_a_large_pool_is_searched(device):
    rows, width = 2**21 + 5, 1024
    references = untouched(rows * width, torch.float16, device).view(rows, width).zero_()
    references[-3:] = some(3, width, dtype=torch.float16).to(device)
    queries = references[-3:] + 0.25
    distances, indices = ops.nearest_neighbors(queries, references, 1, False, 1.0, 0.0)
    expected, _ = of_neighbors(queries.cpu(), references[-3:].cpu(), 1, "euclidean")
    assert indices[:, 0].tolist() == [rows - 3, rows - 2, rows - 1]
    np.testing.assert_allclose(distances.cpu(), expected, rtol=1e-6)
