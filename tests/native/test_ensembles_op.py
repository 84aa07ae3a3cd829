"""The ensemble scorer against float64 truth (truth.py)."""

import math

import numpy as np
import pytest
import torch
from truth import DTYPES
from truth import ENSEMBLE_NAMES as NAMES
from truth import assert_ensembles as assert_close
from truth import of_passes as truth

import prunefuse
from prunefuse.ops import reference


def passes(shape, seed=0, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape[1:], generator=generator) * spread
    return (common + torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 16, 17, 100, 127, 128, 129, 512, 513, 1000, 1537])
def test_agrees_with_float64(isa, dtype, classes):
    for count, rows, spread in ((1, 3, 3.0), (2, 0, 1.0), (5, 1, 0.01), (10, 33, 3.0), (3, 7, 30.0)):
        assert_close(passes((count, rows, classes), classes, spread, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 33, 100, 768, 769, 5003])
def test_agrees_with_float64_on_cuda(gpu, dtype, classes):
    for count, rows in ((1, 1), (10, 33), (3, 300 if classes < 100 else 40)):
        assert_close(passes((count, rows, classes), classes, dtype=dtype), device=gpu)


def test_stays_exact_with_many_classes_and_passes(isa, device):
    logits = passes((4, 2, 128_000))
    assert_close(logits, expected=truth(logits), device=device)
    assert_close(passes((300, 3, 5)), device=device)
    assert_close(passes((70, 2, 1100)), device=device)


# Three passes of a row with three classes each.
SPECIAL = {
    "nan_in_one_pass": [[1, 2, 3], [math.nan, 1, 2], [1, 2, 3]],
    "nan_beside_inf": [[1, 2, 3], [math.nan, math.inf, 2], [1, 2, 3]],
    "masked_out_in_one_pass": [[1, 2, 3], [-math.inf] * 3, [1, 2, 3]],
    "masked_class": [[1, -math.inf, 3], [2, -math.inf, 0], [1, -math.inf, 1]],
    "masked_once": [[1, -math.inf, 3], [2, 1, 0], [-math.inf, -math.inf, 1]],
    "inf": [[math.inf, 0, 1], [0, 1, 2], [0, math.inf, math.inf]],
    "all_inf": [[math.inf] * 3] * 3,
    "equal": [[4, 4, 4]] * 3,
    "tied_votes": [[2, 2, 0], [0, 3, 3], [1, 0, 5]],
    "opposite_and_sure": [[50, 0, -50], [-50, 0, 50], [0, 50, -50]],
    "same_and_sure": [[60, 0, -60]] * 3,
    "huge": [[6e4, -6e4, 6e4]] * 3,
    "subnormal": [[1e-40, 0, -1e-40]] * 3,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 40, 1100])
def test_special_values(isa, dtype, width, device):
    """Alone, and spread over a long row of masked classes, so that blocks and lanes see parts of a row."""
    short = torch.tensor(list(SPECIAL.values()), dtype=torch.float64).transpose(0, 1)
    logits = torch.full((3, len(SPECIAL), width), -math.inf, dtype=torch.float64)
    logits[..., [0, width // 2, width - 1]] = short
    assert_close(logits.to(dtype), device=device)


def test_special_rows_do_not_touch_their_neighbors(isa):
    logits = torch.tensor(list(SPECIAL.values()), dtype=torch.float32).transpose(0, 1)
    together = prunefuse.score_ensemble(logits)
    for i in range(len(SPECIAL)):
        for name, alone in prunefuse.score_ensemble(logits[:, i : i + 1]).items():
            np.testing.assert_allclose(together[name][i : i + 1], alone, atol=1e-6, err_msg=name)


def test_a_vote_goes_to_the_lower_of_equal_classes(isa):
    logits = torch.tensor([[[1.0, 1.0, 0.0]], [[2.0, 0.0, 2.0]], [[0.0, 3.0, 3.0]], [[0.0, 0.0, 1.0]]])
    assert prunefuse.score_ensemble(logits, "variation_ratio").tolist() == [0.5]


def test_saturated_rows_keep_their_order(isa):
    gaps = torch.arange(10.0, 70.0)
    logits = torch.stack([gaps, torch.zeros(60), torch.zeros(60)], 1).expand(4, -1, -1)
    expected = truth(logits)
    for name in ("predictive_entropy", "mean_entropy"):
        utilities = prunefuse.score_ensemble(logits, name)
        assert (utilities[1:] < utilities[:-1]).all(), name
        np.testing.assert_allclose(utilities, expected[name], rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("classes", [10, 300])
def test_bald_is_never_negative_where_passes_agree(isa, classes):
    logits = passes((1, 500, classes)).expand(7, -1, -1)
    bald = prunefuse.score_ensemble(logits, "bald")
    assert (bald >= 0).all()
    assert bald.max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(isa, dtype, device):
    base = passes((6, 40, 300), dtype=dtype).to(device)
    views = {
        "passes_last": base.permute(1, 2, 0)[:5].permute(2, 0, 1),
        "rows_and_passes_swapped": base.transpose(0, 1),
        "classes_and_rows_swapped": base.transpose(1, 2),
        "every_other_class": base[..., ::2],
        "few_classes": base[..., 3:13],
        "every_other_pass": base[::2, 1:],
        "one_pass_expanded": base[:1].expand(5, -1, -1),
        "one_class_expanded": base[..., :1].expand(-1, -1, 9),
    }
    for name, view in views.items():
        got, same = prunefuse.score_ensemble(view), prunefuse.score_ensemble(view.contiguous())
        for strategy in NAMES:
            torch.testing.assert_close(
                got[strategy], same[strategy], rtol=1e-5, atol=1e-6, msg=f"{name} {strategy}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_averaged_and_not_softmaxed(isa, dtype, device):
    p = torch.rand(4, 20, 37, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    p[0, 0, 1:] = 0
    p = p / p.sum(2, keepdim=True)
    assert_close((p * 3).to(dtype), expected=truth(p.log()), device=device, probabilities=True)
    p[2, 3, 0] = -0.1
    got = prunefuse.score_ensemble(p.to(dtype).to(device), "bald", probabilities=True)
    assert got.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("temperature", [0.25, 3.0, 1e4])
def test_temperature_divides_the_logits(isa, temperature, device):
    assert_close(passes((3, 20, 60), dtype=torch.float64), device=device, temperature=temperature)


def test_numpy_in_numpy_out_and_nothing_is_written():
    logits = passes((3, 6, 4)).numpy()
    before = logits.copy()
    assert isinstance(prunefuse.score_ensemble(logits, "bald"), np.ndarray)
    scores = prunefuse.EnsembleScores()
    for one in logits:
        scores.update(one)
    assert isinstance(scores.result("bald"), np.ndarray)
    np.testing.assert_allclose(scores.probabilities().sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_wrong_arguments():
    good = torch.zeros(2, 3, 4)
    for bad, error, message in (
        (torch.zeros(3, 4), RuntimeError, "logits must have 3 dimension"),
        (torch.zeros(0, 3, 4), RuntimeError, "at least one pass"),
        (torch.zeros(2, 3, 0), RuntimeError, "at least one class"),
        (torch.zeros(2, 3, 4, dtype=torch.int32), TypeError, "logits"),
        ("logits", TypeError, "logits"),
    ):
        with pytest.raises(error, match=message):
            prunefuse.score_ensemble(bad)
    with pytest.raises(ValueError, match=r"bald, .*'entropy'"):
        prunefuse.score_ensemble(good, "entropy")
    with pytest.raises(ValueError, match="temperature"):
        prunefuse.score_ensemble(good, temperature=0)
    scores = prunefuse.EnsembleScores()
    with pytest.raises(RuntimeError, match="first update"):
        scores.result()
    with pytest.raises(RuntimeError, match="2 dimension"):
        scores.update(good)
    scores.update(good[0])
    for other in (torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="sums"):
            scores.update(other)
    assert scores.passes == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, device):
    logits = torch.rand(3, 5, 11).to(dtype).to(device)
    torch.library.opcheck(torch.ops.prunefuse.score_ensemble.default, (logits, [2, 0], True, 0.7))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = (
        torch.zeros(5, 11, dtype=wide, device=device),
        torch.zeros(5, 11, dtype=torch.int32, device=device),
        torch.zeros(5, dtype=wide, device=device),
    )
    torch.library.opcheck(torch.ops.prunefuse.ensemble_add_.default, (*state, logits[0], False, 2.5))


def test_the_operators_read_every_scalar_they_are_given():
    p = torch.rand(3, 6, 5, dtype=torch.float64)
    got = torch.ops.prunefuse.score_ensemble(p, [3, 1, 2, 0], True, 0.37)
    expected = truth(p.log(), 0.37)
    for row, name in zip(got, ("mean_entropy", "predictive_entropy", "variation_ratio", "bald"), strict=True):
        np.testing.assert_allclose(row, expected[name], atol=1e-14)
    state = (
        torch.zeros(6, 5, dtype=torch.float64),
        torch.zeros(6, 5, dtype=torch.int32),
        torch.zeros(6).double(),
    )
    same = [t.clone() for t in state]
    torch.ops.prunefuse.ensemble_add_(*state, p[0], True, 0.37)
    reference.ensemble_add_(*same, p[0], True, 0.37)
    for ours, plain in zip(state, same, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_plain_torch_reference_agrees():
    logits = torch.tensor(list(SPECIAL.values()), dtype=torch.float64).transpose(0, 1)
    expected = truth(logits)
    for i, row in enumerate(reference.score_ensemble(logits, [0, 1, 2, 3], False, 1.0)):
        np.testing.assert_allclose(row, expected[NAMES[i]], atol=1e-12, err_msg=NAMES[i])


def test_under_compile(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def utilities(logits):
        return prunefuse.score_ensemble(logits * 2, ("bald", "variation_ratio"))

    logits = passes((3, 8, 9)).to(device)
    for name, got in utilities(logits).items():
        torch.testing.assert_close(got, prunefuse.score_ensemble(logits * 2, name))


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        prunefuse.score_ensemble(torch.randn(3, 7, 11))
    assert counter.get_total_flops() == 7 * 11 * (3 * 8 + 5)
    with FlopCounterMode(display=False) as counter:
        prunefuse.EnsembleScores().update(torch.randn(7, 11))
    assert counter.get_total_flops() == 7 * 11 * 8
