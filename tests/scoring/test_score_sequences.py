"""Sequences from hidden states and a head: the scores of the logits that are never held, reduced over the tokens that count."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import prunefuse
from prunefuse.scoring import LOGIT_STRATEGIES

NAMES = (*LOGIT_STRATEGIES, "loss")
REDUCTIONS = {"mean": lambda u: u.mean(), "max": lambda u: u.max(), "sum": lambda u: u.sum()}


def sequences(sequences=9, tokens=7, width=12, classes=2100, dtype=torch.float64):
    """Hidden states, a head, targets and a mask; the first sequence counts in full and the second not at all."""
    generator = torch.Generator().manual_seed(sequences * tokens)
    hidden = torch.randn(sequences, tokens, width, generator=generator, dtype=torch.float64) / 2
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (sequences, tokens), generator=generator)
    mask = torch.rand(sequences, tokens, generator=generator) < 0.6
    mask[:1], mask[1:2] = True, False
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets, mask


def truth(logits, targets, temperature=1.0):
    """Utilities (N, T) by name of all tokens from their logits (N, T, V), in float64."""
    log_p = torch.log_softmax(logits.double() / temperature, 2)
    p = log_p.exp()
    missing = torch.tensor([[[-math.inf]]], dtype=torch.float64).expand(*logits.shape[:2], 1)
    first, second = torch.cat([logits.double(), missing], 2).topk(2, 2).values.unbind(2)
    p1, p2 = (
        torch.exp(x / temperature - torch.logsumexp(logits.double() / temperature, 2))
        for x in (first, second)
    )
    return {
        "least_confidence": 1 - p1,
        "margin": 1 - p1 + p2,
        "entropy": -(p * log_p).sum(2),
        "energy": -temperature * torch.logsumexp(logits.double() / temperature, 2),
        "logit_margin": second - first,
        "loss": -log_p.gather(2, targets[..., None])[..., 0],
    }


def by_hand(utilities, mask, reduction):
    """Sequence by sequence, with the tokens that count and nothing else."""
    return [
        REDUCTIONS[reduction](row[counts]).item() if counts.any() else math.nan
        for row, counts in zip(utilities, mask, strict=True)
    ]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 2), (9, 7, 12, 2100), (3, 101, 8, 2049), (40, 13, 33, 5001)], ids=str
)
def test_equals_the_scores_of_the_logits(shape, reduction, device):
    hidden, weight, bias, targets, mask = sequences(*shape)
    for offset, temperature in ((None, 1.0), (bias, 0.3)):
        logits = hidden @ weight.T + (0 if offset is None else offset)
        expected = truth(logits, targets, temperature)
        got = prunefuse.score_sequences(
            hidden.to(device),
            weight.to(device),
            None if offset is None else offset.to(device),
            NAMES,
            targets=targets,
            mask=mask,
            reduction=reduction,
            temperature=temperature,
        )
        assert tuple(got) == NAMES
        for name in NAMES:
            wanted = by_hand(expected[name], mask, reduction)
            np.testing.assert_allclose(got[name].cpu(), wanted, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_round_the_logits_only(isa, dtype):
    hidden, weight, bias, targets, mask = sequences(dtype=dtype)
    got = prunefuse.score_sequences(hidden, weight, bias, NAMES, targets=targets, mask=mask)
    # By torch from logits of that dtype, which a product of another shape may round to a neighbor.
    logits = torch.addmm(bias, hidden.flatten(0, 1), weight.T).view(*targets.shape, -1)
    step = float(logits.abs().max()) * torch.finfo(dtype).eps
    for name, utilities in truth(logits, targets).items():
        assert got[name].dtype == torch.float32
        wanted = by_hand(utilities, mask, "mean")
        np.testing.assert_allclose(got[name], wanted, rtol=0, atol=2 * step + 1e-5, err_msg=name)


def test_targets_that_are_sure_keep_their_order():
    """A loss below what float32 can tell from a probability of 1."""
    gaps = torch.linspace(20, 60, 9)
    weight = torch.zeros(3000, 1)
    weight[2500] = 1
    hidden = gaps.view(9, 1, 1)
    targets = torch.full((9, 1), 2500)
    got = prunefuse.score_sequences(hidden, weight, None, "loss", targets=targets).double()
    torch.testing.assert_close(got, torch.log1p(2999 * torch.exp(-gaps.double())), rtol=1e-5, atol=0)


def test_tokens_that_do_not_count_are_not_looked_at():
    hidden, weight, bias, targets, mask = sequences()
    given = {"bias": bias, "strategy": NAMES, "mask": mask}
    expected = prunefuse.score_sequences(hidden, weight, targets=targets, **given)
    hidden[~mask], targets[~mask] = math.nan, -100
    got = prunefuse.score_sequences(hidden, weight, targets=targets, **given)
    for name in NAMES:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0, equal_nan=True)
        assert got[name].isnan().nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_token_that_counts_and_is_nan_makes_its_sequence_nan(reduction):
    hidden, weight, _, targets, _ = sequences()
    hidden[2, 3, 1] = math.nan
    for utilities in prunefuse.score_sequences(
        hidden, weight, None, NAMES, targets=targets, reduction=reduction
    ).values():
        assert utilities.isnan().nonzero().flatten().tolist() == [2]


def test_masked_classes_and_infinite_logits():
    """A bias of -inf masks a class: as a target it has an infinite loss. +inf classes share the mass."""
    weight, bias = torch.zeros(5000, 1), torch.zeros(5000)
    bias[:3000] = -math.inf
    hidden, targets = torch.ones(2, 1, 1), torch.tensor([[4000], [10]])
    loss = prunefuse.score_sequences(hidden, weight, bias, "loss", targets=targets)
    assert loss[0] == pytest.approx(math.log(2000), rel=1e-6)
    assert loss[1] == math.inf
    bias[[3100, 4000]] = math.inf
    loss = prunefuse.score_sequences(hidden, weight, bias, "loss", targets=torch.tensor([[4000], [3500]]))
    assert loss[0] == pytest.approx(math.log(2), rel=1e-6)
    assert loss[1] == math.inf
    nothing = torch.full((5000,), -math.inf)
    assert prunefuse.score_sequences(hidden, weight, nothing, "loss", targets=targets).isnan().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (0, 0), (3, 4)])
def test_no_sequences_and_no_tokens_that_count(shape, reduction):
    got = prunefuse.score_sequences(
        torch.zeros(*shape, 6),
        torch.zeros(5, 6),
        None,
        NAMES,
        targets=torch.zeros(shape, dtype=torch.int64),
        mask=torch.zeros(shape, dtype=torch.bool),
        reduction=reduction,
    )
    for utilities in got.values():
        assert utilities.shape == (shape[0],)
        assert utilities.isnan().all()


def test_without_a_mask_every_token_counts():
    hidden, weight, _, _, _ = sequences()
    for mask in (torch.ones(9, 7, dtype=torch.int32), torch.full((9, 7), 3, dtype=torch.uint8)):
        torch.testing.assert_close(
            prunefuse.score_sequences(hidden, weight), prunefuse.score_sequences(hidden, weight, mask=mask)
        )


def test_any_strides_and_numpy():
    hidden, weight, _, targets, mask = sequences()
    tokens = targets.clone()
    given = {"strategy": "loss", "mask": mask[:, 1:]}
    expected = prunefuse.score_sequences(
        hidden[:, :-1].contiguous(), weight, targets=tokens[:, 1:].contiguous(), **given
    )
    for view in (hidden, hidden.transpose(0, 1).contiguous().transpose(0, 1), hidden.mT.contiguous().mT):
        got = prunefuse.score_sequences(view[:, :-1], weight, targets=tokens[:, 1:], **given)
        torch.testing.assert_close(got, expected, equal_nan=True)
    before = hidden.clone()
    got = prunefuse.score_sequences(
        hidden.numpy(),
        weight.numpy(),
        strategy="loss",
        targets=tokens.numpy().astype(np.uint16),
        reduction="max",
    )
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(
        got, prunefuse.score_sequences(hidden, weight, strategy="loss", targets=tokens, reduction="max")
    )
    assert torch.equal(hidden, before)


def test_gradients_are_not_kept():
    head = torch.nn.Linear(6, 9)
    hidden = torch.randn(2, 3, 6, requires_grad=True)
    assert not prunefuse.score_sequences(hidden, head.weight, head.bias).requires_grad


class Watch(TorchDispatchMode):
    """The bytes of the largest tensor made, and how many rows were multiplied with a head of ``width`` features."""

    def __init__(self):
        super().__init__()
        self.largest, self.rows = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket == torch.ops.aten.mm:
            columns = args[1].shape[1]
            self.rows[columns] = self.rows.get(columns, 0) + len(args[0])
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


def test_memory_is_one_tile_and_padding_is_not_multiplied():
    hidden, weight = torch.randn(50, 40, 8), torch.randn(20_000, 8)
    mask = torch.arange(40) < torch.arange(50)[:, None]
    with Watch() as watch:
        prunefuse.score_sequences(
            hidden,
            weight,
            None,
            ("loss", "entropy"),
            targets=torch.zeros(50, 40, dtype=torch.int64),
            mask=mask,
        )
    assert watch.largest <= max(256 * 2048 * 4, weight.untyped_storage().nbytes())
    assert watch.rows == {2048: 9 * int(mask.sum()), 20_000 % 2048: int(mask.sum())}


def test_a_mask_on_a_gpu_is_waited_for_once(count_waits):
    hidden, weight, _, targets, mask = sequences(dtype=torch.float32)

    def score(hidden, weight, targets, mask=None):
        return prunefuse.score_sequences(hidden, weight, None, "loss", targets=targets, mask=mask)

    for others, most in (((targets,), 0), ((targets, mask), 1)):
        got, waits = count_waits(score, hidden, weight, *others)
        assert waits == most
        torch.testing.assert_close(got, score(hidden, weight, *others), equal_nan=True)


def test_targets_that_are_no_class_are_nan_on_a_gpu(count_waits):
    hidden, weight, _, targets, _ = sequences(dtype=torch.float32)
    wrong = targets.clone()
    wrong[3, 2], wrong[5, 0] = -1, 2100

    def score(hidden, weight, targets):
        return prunefuse.score_sequences(hidden, weight, None, "loss", targets=targets)

    got, waits = count_waits(score, hidden, weight, wrong)
    assert waits == 0
    expected = score(hidden, weight, targets)
    expected[[3, 5]] = math.nan
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 4)}, ValueError, r"hidden must have shape \(N, T, D\), got \(3, 4\)"),
        ({"hidden": [[[1.0]]]}, TypeError, "hidden must be a torch tensor"),
        ({"hidden": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "hidden must be float16"),
        (
            {"weight": torch.zeros(5, 3)},
            ValueError,
            r"weight must have shape \(V, 4\) with V > 0, got \(5, 3\)",
        ),
        ({"weight": torch.zeros(5, 4).half()}, ValueError, "weight must have the dtype and device of hidden"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(5,\), got \(4,\)"),
        ({"strategy": "perplexity"}, ValueError, "strategy must be one of least_confidence.* loss"),
        ({"strategy": ()}, ValueError, "strategy"),
        ({"strategy": "entropy"}, ValueError, "targets must be left out where no strategy is loss"),
        ({"targets": None}, ValueError, "targets must be given for the strategy loss"),
        ({"targets": torch.zeros(2, 3)}, TypeError, "targets must be integers, got torch.float32"),
        ({"targets": torch.zeros(2, 3) > 0}, TypeError, "targets must be integers, got torch.bool"),
        (
            {"targets": torch.zeros(3, 2).long()},
            ValueError,
            r"targets must have shape \(2, 3\), got \(3, 2\)",
        ),
        (
            {"targets": torch.tensor([[0, 1, 2], [4, 5, -100]])},
            ValueError,
            "targets must be classes, 0 to 4, where a token counts, got 5 for token 1 of sequence 1",
        ),
        (
            {"targets": torch.tensor([[0, 1, -100], [4, 3, -100]])},
            ValueError,
            "got -100 for token 2 of sequence 0",
        ),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be bool or integer"),
        ({"mask": torch.ones(3, 2) > 0}, ValueError, r"mask must have shape \(2, 3\)"),
        ({"reduction": "median"}, ValueError, "reduction must be one of mean, max, sum"),
        ({"temperature": 0}, ValueError, "temperature must be positive"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "hidden": torch.zeros(2, 3, 4),
        "weight": torch.zeros(5, 4),
        "strategy": "loss",
        "targets": torch.zeros(2, 3, dtype=torch.int64),
        **change,
    }
    with pytest.raises(error, match=message):
        prunefuse.score_sequences(**arguments)
