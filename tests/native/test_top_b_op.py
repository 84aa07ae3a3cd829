"""Picking the b best, against a sort of (utility, index) pairs in Python."""

import math

import numpy as np
import pytest
import torch
from truth import of_top_b as truth

import prunefuse

DTYPES = (torch.float32, torch.float64)


def assert_picks(utilities, b):
    indices, values = prunefuse.top_b(utilities, b)
    assert indices.tolist() == truth(utilities.tolist(), b)
    assert torch.equal(values, utilities[indices])
    assert indices.dtype == torch.int64
    assert values.dtype == utilities.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "order", ["random", "ascending", "descending", "constant", "few_values", "nan", "few_best", "infinite"]
)
def test_many_rows_in_every_order(dtype, order, device):
    """Long enough for several threads, and for thresholds that a sample finds too low or too high."""
    n = 400_003
    generator = torch.Generator().manual_seed(0)
    utilities = {
        "random": torch.rand(n, generator=generator, dtype=dtype),
        "ascending": torch.arange(n, dtype=dtype),
        "descending": -torch.arange(n, dtype=dtype),
        "constant": torch.ones(n, dtype=dtype),
        "few_values": torch.randint(0, 5, (n,), generator=generator).to(dtype),
        "nan": torch.where(torch.rand(n, generator=generator) < 0.8, torch.nan, torch.ones(n)).to(dtype),
        "few_best": (torch.arange(n) % 40_009 == 0).to(dtype),
        "infinite": torch.where(torch.rand(n, generator=generator) < 0.3, torch.inf, -torch.inf).to(dtype),
    }[order].to(device)
    for b in (0, 1, 7, 1000, 50_000):
        indices, values = prunefuse.top_b(utilities, b)
        known = torch.where(utilities.isnan(), -torch.inf, utilities)
        expected = known.sort(descending=True, stable=True).indices[:b]
        assert torch.equal(indices, expected)
        assert torch.equal(values, utilities[expected])


def test_every_instruction_set_level_picks_the_same(isa):
    utilities = torch.randn(50_001, generator=torch.Generator().manual_seed(0))
    utilities[::5] = math.nan
    utilities[::7] = 1.0
    for dtype in DTYPES:
        for b in (3, 8_000, 40_000):
            assert_picks(utilities.to(dtype), b)


@pytest.mark.parametrize("rows", [3_000, 300_007])
@pytest.mark.parametrize("dtype", DTYPES)
def test_utilities_of_every_size_and_sign_come_back_as_they_were(rows, dtype, isa):
    """From subnormal to infinite. Zeros of both signs are equal, and keep their signs."""
    generator = torch.Generator().manual_seed(rows)
    range_of = 1000 if dtype == torch.float64 else 140
    exponents = torch.randint(-range_of, range_of, (rows,), generator=generator)
    utilities = torch.ldexp(torch.randn(rows, dtype=dtype, generator=generator), exponents)
    utilities[::3], utilities[1::6], utilities[::1001], utilities[1::1001] = 0.0, -0.0, math.inf, -math.inf
    utilities[::97] = math.nan
    order = torch.where(utilities.isnan(), -math.inf, utilities).sort(descending=True, stable=True).indices
    for b in (1, 600, rows // 3, rows // 2, rows - rows // 50):
        indices, values = prunefuse.top_b(utilities, b)
        expected = order[~utilities[order].isnan()][:b]
        assert torch.equal(indices, expected)
        assert torch.equal(values, utilities[expected])
        assert torch.equal(values.signbit(), utilities[expected].signbit())


def test_a_sample_that_misses_the_best_costs_a_second_pass_and_no_pick(device):
    """All values but the few that a sample is taken from are low: its threshold is too high."""
    n = 100_000
    places = [((i * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 32) * n >> 32 for i in range(2048)]
    utilities = torch.zeros(n)
    utilities[places] = 5 + torch.rand(2048, generator=torch.Generator().manual_seed(0))
    utilities = utilities.to(device)
    for b in (1, 1_000, 3_000, 99_000):
        assert torch.equal(
            prunefuse.top_b(utilities, b)[0], utilities.sort(descending=True, stable=True).indices[:b]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_many_that_can_be_selected(dtype, device):
    """The rest of the result is filled up, and zeros of both signs are equal, as they are."""
    n = 50_001
    utilities = torch.full((n,), math.nan, dtype=dtype)
    places = torch.tensor([3, 70, 8000, 8001, 49_000, n - 1])
    utilities[places] = torch.tensor([-0.0, 0.0, -math.inf, 5.0, 0.0, math.inf], dtype=dtype)
    indices, values = torch.ops.prunefuse.top_b(utilities.to(device), 300)
    assert indices.tolist() == [n - 1, 8001, 3, 70, 49_000, 8000] + [-1] * 294
    assert str(values[:6].tolist()) == "[inf, 5.0, -0.0, 0.0, 0.0, -inf]"
    assert values[6:].isnan().all()


def test_all_rows_are_a_stable_sort():
    utilities = torch.randint(0, 9, (1000,)).float()
    assert_picks(utilities, 1000)


def test_strided_utilities():
    utilities = torch.rand(300)[::3]
    assert_picks(utilities, 20)


def test_too_few_selectable_rows_is_an_error_that_counts_them():
    utilities = torch.tensor([1.0, math.nan, 2.0, math.nan])
    with pytest.raises(ValueError, match=r"b is 3, but only 2 of 4 rows can be selected"):
        prunefuse.top_b(utilities, 3)
    indices, values = torch.ops.prunefuse.top_b(utilities, 3)
    assert indices.tolist() == [2, 0, -1]
    assert values[2].isnan()


def test_numpy_and_half_precision():
    indices, values = prunefuse.top_b(np.array([0.5, 2.0, 1.0]), 2)
    assert isinstance(indices, np.ndarray)
    assert indices.tolist() == [1, 2]
    assert values.dtype == np.float64
    indices, values = prunefuse.top_b(torch.tensor([0.5, 2.0, 1.0], dtype=torch.bfloat16), 1)
    assert indices.tolist() == [1]
    assert values.dtype == torch.float32


@pytest.mark.parametrize(
    ("utilities", "b", "error", "message"),
    [
        (torch.zeros(3), -1, ValueError, "b must be at least 0, got -1"),
        (torch.zeros(3), 4, ValueError, "b must be at most the number of rows, 3, got 4"),
        (torch.zeros(3), 1.5, TypeError, "b must be an integer, got float"),
        (torch.zeros(3, dtype=torch.int64), 1, TypeError, "utilities must be float16, .* got torch.int64"),
        (torch.zeros(2, 2), 1, RuntimeError, r"utilities must have 1 dimension\(s\), got 2"),
        ("abc", 1, TypeError, "utilities must be a torch tensor, a NumPy array .* got str"),
    ],
)
def test_wrong_arguments(utilities, b, error, message):
    with pytest.raises(error, match=message):
        prunefuse.top_b(utilities, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_and_compile(dtype, device):
    utilities = torch.rand(9, dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.prunefuse.top_b.default, (utilities, 4))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def best(x):
        return torch.ops.prunefuse.top_b(x + 1, 4)

    assert torch.equal(best(utilities)[0], prunefuse.top_b(utilities + 1, 4)[0])


def test_the_plain_torch_reference_agrees():
    from prunefuse.ops import reference

    utilities = torch.tensor([1.0, math.nan, 3.0, 1.0, -math.inf])
    for b in range(5):
        for ours, plain in zip(
            torch.ops.prunefuse.top_b(utilities, b), reference.top_b(utilities, b), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_excluded_rows_are_never_selected(dtype):
    utilities = torch.tensor([3.0, 9.0, float("nan"), 7.0, 8.0], dtype=dtype)
    before = utilities.clone()
    for exclude in ([1, 4], (1, 4, 1), np.array([4, 1], dtype=np.uint8), [False, True, False, False, True]):
        assert prunefuse.top_b(utilities, 2, exclude=exclude)[0].tolist() == [3, 0]
    torch.testing.assert_close(utilities, before, equal_nan=True)
    assert prunefuse.top_b(utilities, 2, exclude=[])[0].tolist() == [1, 4]
    with pytest.raises(
        prunefuse.errors.TooFewRowsError, match=r"b is 3, but only 2 of 5 .* NaN or excluded"
    ) as caught:
        prunefuse.top_b(utilities, 3, exclude=[1, 4])
    assert caught.value.selectable == 2


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ([5], ValueError, r"exclude must hold rows of utilities \(0 to 4\), got 5"),
        ([-1], ValueError, r"exclude must hold rows of utilities \(0 to 4\), got -1"),
        ([True, False], ValueError, "exclude must be a mask of the 5 rows"),
        ([1.0], TypeError, "exclude must be a sequence of row indices, or a mask"),
        (["1"], TypeError, "exclude must be a sequence of row"),
        (3, TypeError, "exclude must be a sequence of row indices, .*got int"),
        ({1: 2}, TypeError, "exclude must be a sequence of row"),
        ([[1]], ValueError, "exclude must be a sequence of row"),
    ],
)
def test_wrong_rows_to_exclude(exclude, error, message):
    with pytest.raises(error, match=message):
        prunefuse.top_b(torch.rand(5), 2, exclude=exclude)
