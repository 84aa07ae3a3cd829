"""The operators of training dynamics against float64 truth (truth.py)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import DTYPES, assert_dynamics, eps, of_divergences, of_dynamics

from prunefuse import ops
from prunefuse.ops import reference

operators = torch.ops.prunefuse


def numbers(rows, classes, dtype=torch.float32, spread=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed + classes)
    logits = torch.randn(rows, classes, generator=generator) * spread
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 127, 128, 129, 511, 513, 1000, 1537])
def test_agrees_with_float64(isa, dtype, classes):
    for rows, spread in ((0, 1.0), (1, 1.0), (33, 0.01), (40, 4.0), (7, 30.0)):
        assert_dynamics(*numbers(rows, classes, dtype, spread))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 33, 100, 768, 5003])
def test_agrees_with_float64_on_cuda(gpu, dtype, classes):
    for rows in (1, 33, 3000 if classes < 100 else 300):
        assert_dynamics(*numbers(rows, classes, dtype), device=gpu)


SPECIAL = {
    "nan": [1, math.nan, 3],
    "nan_label": [math.nan, 1, 3],
    "nan_beside_inf": [1, math.nan, math.inf],
    "masked_out": [-math.inf] * 3,
    "masked_label": [-math.inf, 1, 3],
    "masked_others": [2, -math.inf, -math.inf],
    "masked_other": [2, -math.inf, 3],
    "inf_label": [math.inf, 0, 1],
    "inf_other": [0, math.inf, 1],
    "inf_both": [math.inf, math.inf, 1],
    "inf_others": [1, math.inf, math.inf],
    "all_inf": [math.inf] * 3,
    "equal": [4, 4, 4],
    "tied_lead": [4, 4, 0],
    "sure": [50, 0, -50],
    "sure_and_wrong": [-50, 0, 50],
    "huge": [6e4, -6e4, 6e4],
    "subnormal": [1e-40, 0, -1e-40],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 40, 1100])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_special_values(isa, dtype, width, label, device):
    """Alone, and spread over a long row of masked classes, so that blocks and lanes see parts of a row."""
    places = [0, width // 2, width - 1]
    logits = torch.full((len(SPECIAL), width), -math.inf, dtype=torch.float64)
    logits[:, places] = torch.tensor(list(SPECIAL.values()), dtype=torch.float64)
    labels = torch.full((len(SPECIAL),), places[label])
    if width > 3 and label == 0:
        labels += 1  # a masked class
    assert_dynamics(logits.to(dtype), labels, device)


def test_saturated_rows_keep_full_relative_precision(isa):
    gaps = torch.arange(1.0, 68.0)
    for sign in (1, -1):
        logits = torch.stack([sign * gaps, torch.zeros(67), torch.zeros(67)], 1)
        expected = of_dynamics(logits, torch.zeros(67, dtype=torch.int64))
        got = ops.dynamics(logits, torch.zeros(67, dtype=torch.int64)).double().numpy()
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=0)
    wrong = ops.dynamics(torch.tensor([[-300.0, 0.0]]), torch.tensor([0]))
    assert wrong[2].item() == 300  # the loss, where the probability is zero in float32


def test_the_lowest_of_equal_classes_is_the_answer(isa):
    for width in (3, 300):
        logits = torch.zeros(3, width)
        assert ops.dynamics(logits, torch.tensor([0, 1, 2]))[5].tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(isa, dtype, device):
    base, labels = numbers(300, 300, dtype)
    base, labels = base.to(device), (labels % 20).to(device)
    for view in (base.t(), base[:, ::2], base[5:, 3:24], base[:, :1].expand(-1, 40), base[:1].expand(9, -1)):
        got = ops.dynamics(view, labels[: len(view)])
        torch.testing.assert_close(
            got, ops.dynamics(view.contiguous(), labels[: len(view)]), rtol=1e-5, atol=1e-6
        )


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(RuntimeError, match="got 4 in row 1"):
        ops.dynamics(torch.zeros(3, 4), torch.tensor([0, 4, -1]))


def test_a_label_that_is_no_class_gives_nan_on_cuda(gpu):
    logits, labels = torch.zeros(3, 4, device=gpu), torch.tensor([0, 4, -1], device=gpu)
    assert ops.dynamics(logits, labels).isnan().any(0).tolist() == [False, True, True]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([1, 2, 5, 10, 17, 130, 600]),
    st.sampled_from(DTYPES),
    st.sampled_from([0.1, 4.0, 40.0]),
    st.integers(0, 2**31),
    st.lists(st.sampled_from([math.nan, math.inf, -math.inf, -math.inf, 0.0, 6e4, -6e4]), max_size=3),
)
def test_any_values(classes, dtype, spread, seed, special):
    logits, labels = numbers(19, classes, torch.float64, spread, seed)
    if special:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(logits.shape, generator=generator) < 0.1
        values = torch.tensor(special, dtype=torch.float64)
        logits = torch.where(
            chosen, values[torch.randint(len(special), logits.shape, generator=generator)], logits
        )
    assert_dynamics(logits.to(dtype), labels)


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("kept", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 10, 17, 100, 513, 1100])
def test_divergence_of_successive_rows(isa, device, stored, kept, classes):
    steps = torch.stack([numbers(30, classes, stored, 2.0 + 2 * t, t)[0] for t in range(4)])
    state = torch.ones(50, classes, dtype=kept, device=device)
    samples = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:30]
    samples[4] = -1
    expected = of_divergences(steps)
    precision = max(eps(stored), {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(kept, eps(kept)))
    if torch.float64 in (stored, kept):  # float32 logits are exact in float64
        precision = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(kept, eps(kept))
    for t in range(4):
        got = ops.divergence_(state, steps[t].to(device), samples.to(device), 1e-8).cpu()
        assert got.dtype == torch.float64
        assert got[4] == -1
        used = samples >= 0
        if t == 0:
            assert (got == -1).all()
            continue
        # Logarithms reach -18.4, rounded once kept and once computed.
        np.testing.assert_allclose(
            got[used],
            expected[t - 1][used],
            rtol=30 * precision,
            atol=20 * precision if kept.itemsize < 4 else 60 * precision,
        )
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[samples[used]] = False
    assert (state.cpu()[untouched] == 1).all()


def test_divergence_of_saturated_rows_keeps_its_precision(isa):
    """What float32 probabilities near 1 cannot tell apart, their logarithms can."""
    gaps = torch.tensor([[9.0, 9.5], [12.0, 12.25], [15.0, 14.0]])
    steps = torch.stack([torch.stack([gaps[:, t], torch.zeros(3), torch.zeros(3)], 1) for t in (0, 1)])
    state = torch.ones(3, 3)
    for rows in steps:
        got = ops.divergence_(state, rows, torch.arange(3), 1e-8)
    np.testing.assert_allclose(got, of_divergences(steps)[0], rtol=5e-6)


def test_divergence_where_a_row_has_no_distribution(isa):
    for width in (3, 40):
        state = torch.ones(2, width)
        good, bad = torch.zeros(1, width), torch.full((1, width), -math.inf)
        bad[0, 0] = math.nan
        sample = torch.tensor([1])
        results = [
            ops.divergence_(state, rows, sample, 1e-8).item() for rows in (bad, good, good, bad, good, good)
        ]
        assert results[0] == -1
        assert [math.isnan(r) for r in results[1:]] == [True, False, True, True, False]
        assert results[2] == 0


def test_divergence_with_infinite_and_masked_logits(isa, device):
    steps = torch.tensor([[[math.inf, 0.0, -math.inf]], [[0.0, 1.0, -math.inf]], [[math.inf, math.inf, 2.0]]])
    state = torch.ones(1, 3, dtype=torch.float64, device=device)
    got = [
        ops.divergence_(
            state, rows.double().to(device), torch.zeros(1, dtype=torch.int64, device=device), 1e-8
        ).item()
        for rows in steps
    ]
    p = torch.stack(
        [torch.tensor([1.0, 0, 0]), torch.softmax(steps[1, 0], 0), torch.tensor([0.5, 0.5, 0])]
    ).double()
    logs = (p + 1e-8).log()
    np.testing.assert_allclose(got[1:], (p[1:] * (logs[1:] - logs[:-1])).abs().sum(1), rtol=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 20), st.integers(0, 2**31), st.booleans())
def test_windows_of_a_history(window, lag, steps, seed, averaged):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(steps, 5, generator=generator, dtype=torch.float64)
    keep, gain, divisor = (0.1, 0.9, 1.0) if averaged else (1.0, 1.0, window + 0.5)
    ring = torch.full((5, window + lag), math.nan, dtype=torch.float64)
    counts, sums = torch.zeros(5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.float64)
    for row in values:
        order = torch.randperm(5, generator=generator)
        samples = torch.where(order == 3, -1, order)
        ops.push_(ring, counts, sums, row[order], samples, window, divisor, keep, gain)
    expected = np.zeros((2, 5))
    for k in range(steps - window - lag + 1):
        x = values[k : k + window].numpy()
        spread = np.sqrt(np.square(x - x.mean(0)).sum(0) / divisor)
        expected = keep * expected + gain * np.stack([spread, spread * (1 - x.mean(0))])
    expected[:, 3] = 0
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-15)
    assert counts.tolist() == [steps, steps, steps, 0, steps]


def test_windows_on_cuda(device):
    states = []
    for where in ("cpu", device):
        generator = torch.Generator().manual_seed(0)
        ring = torch.zeros(400, 5, dtype=torch.float64, device=where)
        counts = torch.zeros(400, dtype=torch.int64, device=where)
        sums = torch.zeros(2, 400, dtype=torch.float64, device=where)
        for _ in range(9):
            values = torch.rand(300, generator=generator, dtype=torch.float64).to(where)
            samples = (torch.randperm(401, generator=generator)[:300] - 1).to(where)
            ops.push_(ring, counts, sums, values, samples, 4, 3.0, 1.0, 1.0)
        states.append((ring.cpu(), counts.cpu(), sums.cpu()))
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def an_epoch_begun(device):
    """Samples 4 and 0 of 6 are seen; then a batch with two good rows, and labels of 9 classes."""
    seen = torch.zeros(6, dtype=torch.int32, device=device)
    rejected = torch.zeros(1, dtype=torch.int64, device=device)
    assert ops.claim_(seen, rejected, torch.tensor([4, 0], device=device), None, 0).tolist() == [4, 0]
    batch, labels = torch.tensor([1, 6, 4, 2, -1, 3]), torch.tensor([0, 0, 0, 9, 0, 1])
    return seen, rejected, batch.to(device), labels.to(device)


def test_rows_that_cannot_be_used_are_refused():
    seen, rejected, batch, labels = an_epoch_begun("cpu")
    with pytest.raises(RuntimeError, match="labels must lie in"):
        ops.claim_(seen, rejected, batch, labels, 9)
    with pytest.raises(RuntimeError, match="indices must lie in"):
        ops.claim_(seen, rejected, batch, None, 0)
    with pytest.raises(RuntimeError, match="got 4 again in row 1"):
        ops.claim_(seen, rejected, torch.tensor([1, 4]), None, 0)
    with pytest.raises(RuntimeError, match="got 2 again in row 2"):
        ops.claim_(seen, rejected, torch.tensor([1, 2, 2]), None, 0)
    assert seen.tolist() == [1, 0, 0, 0, 1, 0]
    assert rejected.item() == 0


def test_rows_that_cannot_be_used_are_left_out_on_cuda(gpu):
    seen, rejected, batch, labels = an_epoch_begun(gpu)
    assert ops.claim_(seen, rejected, batch, labels, 9).tolist() == [1, -1, -1, -1, -1, 3]
    assert seen.tolist() == [1, 1, 0, 1, 1, 0]
    assert rejected.item() == 4


def test_opcheck(device):
    logits, labels = (t.to(device) for t in numbers(5, 11))
    samples = torch.tensor([3, -1, 0, 2, 5], device=device)
    torch.library.opcheck(operators.dynamics.default, (logits, labels))
    torch.library.opcheck(
        operators.divergence_.default, (torch.ones(6, 11, device=device), logits, samples, 1e-6)
    )
    seen, rejected = torch.zeros(9, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    claim = (seen.to(device), rejected.to(device), samples + 1, labels, 11)
    torch.library.opcheck(operators.claim_.default, claim, test_utils=("test_schema", "test_faketensor"))
    ring, sums = torch.zeros(6, 3, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64)
    history = (ring.to(device), torch.zeros(6, dtype=torch.int64, device=device), sums.to(device))
    torch.library.opcheck(
        operators.push_.default, (*history, logits[:, 0].double(), samples, 2, 1.5, 0.25, 0.75)
    )


def test_the_plain_torch_reference_agrees():
    logits = torch.tensor(list(SPECIAL.values()), dtype=torch.float64)
    labels = torch.zeros(len(logits), dtype=torch.int64)
    np.testing.assert_allclose(reference.dynamics(logits, labels), of_dynamics(logits, labels), atol=1e-12)
    steps = torch.stack([numbers(6, 9, torch.float64, seed=t)[0] for t in range(3)])
    ours, plain = torch.ones(7, 9, dtype=torch.float64), torch.ones(7, 9, dtype=torch.float64)
    samples = torch.tensor([6, 2, -1, 0, 1, 5])
    history = [torch.rand(7, 4).double(), torch.arange(7), torch.rand(2, 7).double()]
    same = [t.clone() for t in history]
    for logits in steps:
        got = ops.divergence_(ours, logits, samples, 1e-6)
        torch.testing.assert_close(reference.divergence_(plain, logits, samples, 1e-6), got)
        torch.testing.assert_close(plain, ours)
        ops.push_(*history, got, samples, 3, 1.5, 0.25, 0.75)
        reference.push_(*same, got, samples, 3, 1.5, 0.25, 0.75)
        for one, other in zip(history, same, strict=True):
            torch.testing.assert_close(one, other)


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    logits, labels = numbers(7, 11)
    with FlopCounterMode(display=False) as counter:
        ops.dynamics(logits, labels)
    assert counter.get_total_flops() == 7 * 11 * 6
    with FlopCounterMode(display=False) as counter:
        ops.divergence_(torch.ones(9, 11), logits, torch.arange(7), 1e-8)
    assert counter.get_total_flops() == 7 * 11 * 11
