"""The scorer against float64 truth (truth.py)."""

import math

import numpy as np
import pytest
import torch
from truth import DTYPES, NAMES, RAW, eps
from truth import assert_scores as assert_close
from truth import of_rows as truth

import prunefuse


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 16, 17, 100, 127, 511, 512, 513, 1000, 1537, 5003])
def test_agrees_with_float64(isa, dtype, classes):
    generator = torch.Generator().manual_seed(classes)
    for rows, spread in ((0, 1), (1, 3), (7, 0.01), (33, 3), (5, 30)):
        logits = (torch.randn(rows, classes, generator=generator) * spread).to(dtype)
        assert_close(logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 33, 100, 1000, 4096, 5003, 50_257, 128_000])
@pytest.mark.parametrize("rows", [1, 33, 1000])
def test_agrees_with_float64_on_cuda(gpu, dtype, classes, rows):
    generator = torch.Generator().manual_seed(classes)
    assert_close(
        (torch.randn(min(rows, 10**5 // classes + 1), classes, generator=generator) * 3).to(dtype),
        device=gpu,
    )


def test_is_more_exact_than_torch_at_128k_classes(isa):
    logits = torch.randn(3, 128_000, generator=torch.Generator().manual_seed(0))
    expected = truth(logits)["entropy"]
    assert np.abs(prunefuse.score(logits).numpy() - expected).max() < 1e-5


ADVERSARIAL = {
    "nan_first": [math.nan, 1.0, 2.0],
    "nan_last": [3.0, 1.0, math.nan],
    "nan_beside_inf": [math.inf, 1.0, math.nan],
    "all_masked": [-math.inf, -math.inf, -math.inf],
    "one_unmasked": [-math.inf, 5.0, -math.inf],
    "two_unmasked": [2.0, -math.inf, 1.0],
    "inf": [1.0, math.inf, 2.0],
    "two_inf": [math.inf, 0.0, math.inf],
    "all_inf": [math.inf, math.inf, math.inf],
    "equal": [4.0, 4.0, 4.0],
    "equal_tops": [4.0, 1.0, 4.0],
    "saturated": [50.0, 0.0, -50.0],
    "huge": [6e4, -6e4, 6e4],
    "subnormal": [1e-40, 0.0, -1e-40],
    "negative_zero": [-0.0, 0.0, -1.0],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 40, 1100])
def test_special_values(isa, dtype, width, device):
    """Each special row alone, and spread over a long row of masked classes, so that blocks and lanes see parts of it."""
    short = torch.tensor(list(ADVERSARIAL.values()), dtype=torch.float64)
    logits = torch.full((len(short), width), -math.inf, dtype=torch.float64)
    logits[:, [0, width // 2, width - 1]] = short
    assert_close(logits.to(dtype), device=device)


def test_special_rows_do_not_touch_their_neighbors(isa):
    rows = torch.tensor(list(ADVERSARIAL.values()))
    alone = torch.stack([torch.stack(list(prunefuse.score(row[None], NAMES).values())) for row in rows], 1)[
        ..., 0
    ]
    together = torch.stack(list(prunefuse.score(rows, NAMES).values()))
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)


def test_saturated_rows_keep_their_order(isa):
    """Where 1 - p1 is far below float32's epsilon, rows are still ranked, with full relative precision."""
    gaps = torch.arange(10.0, 70.0)
    logits = torch.stack([gaps, torch.zeros(60), torch.zeros(60)], 1)
    expected = truth(logits)
    for name, utilities in prunefuse.score(logits, NAMES).items():
        assert (utilities[1:] < utilities[:-1]).all(), name
        np.testing.assert_allclose(utilities, expected[name], rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(isa, dtype, device):
    base = torch.randn(64, 1300, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    views = {
        "transposed": base.t()[:40],
        "every_other_column": base[:, ::2],
        "every_other_row": base[::2],
        "offset": base[1:, 3:],
        "expanded_row": base[:1].expand(5, -1),
        "expanded_column": base[:, :1].expand(-1, 7),
    }
    for name, view in views.items():
        for strategy, utilities in prunefuse.score(view, NAMES).items():
            same = prunefuse.score(view.contiguous(), strategy)
            torch.testing.assert_close(utilities, same, rtol=1e-5, atol=1e-6, msg=f"{name} {strategy}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_rescaled_and_not_softmaxed(isa, dtype, device):
    generator = torch.Generator().manual_seed(2)
    p = torch.rand(50, 37, generator=generator, dtype=torch.float64) ** 3
    p[0, 1:] = 0
    p[1, 5] = 0
    p = p / p.sum(1, keepdim=True)
    expected = truth(p.log())
    assert_close(
        (p * 3).to(dtype), device=device, probabilities=True, expected=truth((p * 3).to(dtype).double().log())
    )
    got = prunefuse.score(p.to(dtype).to(device), "entropy", probabilities=True)
    np.testing.assert_allclose(got.cpu(), expected["entropy"], atol=20 * eps(dtype))
    with_negative = p.clone()
    with_negative[3, 0] = -0.1
    assert prunefuse.score(
        with_negative.to(dtype), probabilities=True
    ).isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("temperature", [0.25, 3.0, 1e-3, 1e4])
def test_temperature_divides_the_logits(isa, temperature, device):
    logits = torch.randn(20, 600, generator=torch.Generator().manual_seed(3))
    assert_close(logits.double(), temperature, device=device)
    expected = truth(logits, temperature)
    for name, utilities in prunefuse.score(logits.to(device), NAMES, temperature=temperature).items():
        np.testing.assert_allclose(utilities.cpu(), expected[name], atol=1e-5, err_msg=name)


def test_each_strategy_alone_equals_the_tuple_in_any_order():
    logits = torch.randn(9, 12)
    together = prunefuse.score(logits, ("entropy", "least_confidence", "margin"))
    assert list(together) == ["entropy", "least_confidence", "margin"]
    for name, utilities in together.items():
        torch.testing.assert_close(prunefuse.score(logits, name), utilities, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, device):
    logits = torch.rand(5, 11).to(dtype).to(device)
    torch.library.opcheck(torch.ops.prunefuse.score.default, (logits, [2, 0], True, 0.7))
    torch.library.opcheck(torch.ops.prunefuse.statistics.default, (logits, False, 2.5))


def test_the_operator_reads_every_scalar_it_is_given():
    """A schema that differs from the C++ types is silent: distinctive values would come out wrong."""
    logits = torch.randn(6, 5, dtype=torch.float64)
    got = torch.ops.prunefuse.score(logits, [2, 1], False, 0.37)
    expected = truth(logits, 0.37)
    np.testing.assert_allclose(got[0], expected["entropy"], atol=1e-14)
    np.testing.assert_allclose(got[1], expected["margin"], atol=1e-14)
    p = torch.rand(4, 3, dtype=torch.float64)
    got = torch.ops.prunefuse.score(p, [0], True, 0.37)
    np.testing.assert_allclose(got[0], truth(p.log(), 0.37)["least_confidence"], atol=1e-14)


def test_under_compile(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def utilities(logits):
        return prunefuse.score(logits * 2, ("entropy", "margin"))

    logits = torch.randn(8, 9, device=device)
    for name, got in utilities(logits).items():
        torch.testing.assert_close(got, prunefuse.score(logits * 2, name))


def test_the_plain_torch_reference_agrees():
    from prunefuse.ops import reference

    logits = torch.tensor(list(ADVERSARIAL.values()), dtype=torch.float64)
    expected = truth(logits)
    for i, row in enumerate(reference.score(logits, [0, 1, 2, 3, 4], False, 1.0)):
        np.testing.assert_allclose(row, expected[(*NAMES, *RAW)[i]], atol=1e-12)
    argmax, logsumexp, p1, p2 = reference.statistics(logits, False, 1.0)
    np.testing.assert_array_equal(argmax, expected["argmax"])
    for got, name in ((logsumexp, "logsumexp"), (p1, "p1"), (p2, "p2")):
        np.testing.assert_allclose(got, expected[name], atol=1e-12, err_msg=name)


def test_the_input_is_never_written():
    logits = torch.tensor(list(ADVERSARIAL.values()))
    before = logits.clone()
    prunefuse.score(logits, NAMES, temperature=0.5)
    prunefuse.score(logits, NAMES, probabilities=True)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("first", ["prunefuse", "torch.utils.flop_counter"])
def test_flops_are_counted(first):
    """In a process of its own: whichever is imported first, and from the first call on."""
    import subprocess
    import sys

    code = f"""
import torch, {first}
import prunefuse
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    prunefuse.score(torch.randn(7, 11))
print(counter.get_total_flops())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(6 * 7 * 11), result.stderr
