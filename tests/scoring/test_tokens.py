"""Token sequences: the scores of the tokens that count, reduced."""

import math

import numpy as np
import pytest
import torch

import prunefuse

REDUCTIONS = {"mean": lambda u: u.mean(), "max": lambda u: u.max(), "sum": lambda u: u.sum()}
NAMES = ("least_confidence", "margin", "entropy", "energy", "logit_margin")


def by_hand(logits, mask, name, reduction, **options):
    """Sequence by sequence, with the tokens that count and nothing else."""
    result = []
    for tokens, counts in zip(logits, mask, strict=True):
        kept = prunefuse.score(tokens[counts], name, **options).double()
        result.append(REDUCTIONS[reduction](kept).item() if len(kept) else math.nan)
    return result


def sequences(dtype=torch.float32, shape=(9, 7, 33)):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype)
    mask = torch.rand(shape[:2], generator=generator) < 0.6
    mask[0], mask[1] = True, False
    return logits, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens_that_count_are_reduced(dtype, reduction, device):
    logits, mask = sequences(dtype)
    got = prunefuse.score_tokens(logits.to(device), NAMES, mask=mask, reduction=reduction, temperature=1.7)
    assert tuple(got) == NAMES
    for name in NAMES:
        assert got[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = by_hand(logits, mask, name, reduction, temperature=1.7)
        np.testing.assert_allclose(got[name].cpu(), expected, rtol=1e-5, atol=1e-5, err_msg=name)
        assert math.isnan(expected[1])


def test_without_a_mask_every_token_counts():
    logits, _ = sequences()
    everything = torch.ones(9, 7, dtype=torch.int64)
    torch.testing.assert_close(
        prunefuse.score_tokens(logits), prunefuse.score_tokens(logits, "entropy", mask=everything)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_counts_only_where_the_token_does(reduction):
    logits, mask = sequences()
    mask[2:] = True
    mask[3, 4] = False
    broken = logits.clone()
    broken[2, 1, 5] = math.nan
    broken[3, 4] = math.nan
    got = prunefuse.score_tokens(broken, "margin", mask=mask, reduction=reduction)
    assert got.isnan().nonzero().flatten().tolist() == [1, 2]
    rest = [0, *range(3, 9)]
    torch.testing.assert_close(
        got[rest], prunefuse.score_tokens(logits, "margin", mask=mask, reduction=reduction)[rest]
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sequences_without_tokens_are_nan(reduction):
    assert prunefuse.score_tokens(torch.zeros(3, 0, 5), reduction=reduction).isnan().tolist() == [True] * 3
    assert prunefuse.score_tokens(torch.zeros(0, 4, 5), reduction=reduction).shape == (0,)


def test_any_strides_and_numpy():
    logits, mask = sequences()
    expected = prunefuse.score_tokens(logits, mask=mask)
    for view in (
        logits.transpose(0, 1).contiguous().transpose(0, 1),
        logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        torch.testing.assert_close(
            prunefuse.score_tokens(view, mask=mask), expected, equal_nan=True, rtol=1e-5, atol=1e-6
        )
    before = logits.numpy().copy()
    got = prunefuse.score_tokens(logits.numpy(), mask=mask.numpy())
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(before, logits.numpy())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": torch.ones(9, 7)}, TypeError, "mask must be bool or integer"),
        ({"mask": torch.ones(7, 9, dtype=torch.bool)}, ValueError, r"mask must have shape \(9, 7\)"),
        ({"reduction": "median"}, ValueError, "reduction must be one of mean, max, sum"),
        ({"strategy": "bald"}, ValueError, "strategy must be one of least_confidence"),
        ({"logits": torch.zeros(3, 4)}, ValueError, r"logits must have shape \(N, T, V\)"),
        ({"temperature": 0}, ValueError, "temperature"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        prunefuse.score_tokens(**{"logits": sequences()[0], **options})
