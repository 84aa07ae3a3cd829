"""Scores from hidden states and a linear head: those of the logits that are never held."""

import math

import numpy as np
import pytest
import torch

import prunefuse
from prunefuse import ops
from prunefuse.ops import reference
from prunefuse.scoring import LOGIT_STRATEGIES

NAMES = tuple(LOGIT_STRATEGIES)


@pytest.mark.parametrize(
    ("rows", "width", "classes"), [(0, 3, 5), (1, 1, 1), (7, 16, 100), (300, 8, 2049), (513, 33, 5001)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_scores_of_the_logits(rows, width, classes, with_bias, device):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(device)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64).to(device)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64).to(device) if with_bias else None
    logits = hidden @ weight.T + (bias if with_bias else 0)
    for temperature in (1.0, 0.3):
        expected = prunefuse.score(logits, NAMES, temperature=temperature)
        got = prunefuse.score_linear(hidden, weight, bias, NAMES, temperature=temperature)
        assert list(got) == list(NAMES)
        for name in NAMES:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_round_the_logits_only(isa, dtype):
    generator = torch.Generator().manual_seed(1)
    # Logits of a few units, whose rounding moves an entropy by about as much as it moves them.
    hidden = (torch.randn(40, 24, generator=generator) / 5).to(dtype)
    weight = torch.randn(3000, 24, generator=generator).to(dtype)
    got = prunefuse.score_linear(hidden, weight)
    assert got.dtype == torch.float32
    exact = prunefuse.score(hidden.double() @ weight.double().T)
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance)


def test_masked_and_invalid_rows():
    """A bias of -inf masks a class in every tile; NaN and +inf keep their rules across tiles."""
    hidden = torch.tensor([[1.0], [math.nan], [0.0]])
    weight = torch.linspace(-2, 2, 5000)[:, None]
    bias = torch.zeros(5000)
    bias[:3000] = -math.inf
    got = prunefuse.score_linear(hidden, weight, bias)
    assert got.isnan().tolist() == [False, True, False]
    assert got[2] == pytest.approx(math.log(2000), rel=1e-6)
    bias[[3100, 4500]] = math.inf
    got = prunefuse.score_linear(hidden, weight, bias, NAMES)
    assert got["entropy"][0] == pytest.approx(math.log(2), rel=1e-6)
    assert got["margin"][0] == 1
    assert got["logit_margin"][0] == 0
    assert prunefuse.score_linear(hidden, weight, torch.full((5000,), -math.inf)).isnan().all()


def test_numpy_in_numpy_out():
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    got = prunefuse.score_linear(hidden, weight, strategy="margin")
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, prunefuse.score(hidden @ weight.T, "margin"), atol=1e-12)


def test_memory_is_one_tile(monkeypatch):
    """No tensor of N x V is made: the largest allocation is that of one tile."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    hidden, weight = torch.randn(1000, 8), torch.randn(20_000, 8)
    with Watch():
        prunefuse.score_linear(hidden, weight)
    assert largest <= max(256 * 2048 * 4, weight.untyped_storage().nbytes())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3)}, ValueError, r"hidden must have shape \(N, D\), got \(3,\)"),
        ({"hidden": [[1.0]]}, TypeError, "hidden must be a torch tensor"),
        (
            {"weight": torch.zeros(5, 3)},
            ValueError,
            r"weight must have shape \(V, 4\) with V > 0, got \(5, 3\)",
        ),
        ({"weight": torch.zeros(0, 4)}, ValueError, "with V > 0"),
        (
            {"weight": torch.zeros(5, 4).double()},
            ValueError,
            "weight must have the dtype and device of hidden",
        ),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(5,\), got \(4,\)"),
        ({"bias": torch.zeros(5).half()}, ValueError, "bias must have the dtype and device of hidden"),
        ({"strategy": "k_center"}, ValueError, "strategy must be one of"),
        ({"temperature": 0}, ValueError, "temperature must be positive"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), **change}
    with pytest.raises(error, match=message):
        prunefuse.score_linear(**arguments)


def states(rows, dtype=torch.float64, device="cpu"):
    state = torch.zeros(6, rows, dtype=dtype, device=device)
    state[:2] = -math.inf
    return state


def test_states_do_not_depend_on_the_pieces(isa):
    logits = torch.randn(11, 700, generator=torch.Generator().manual_seed(5), dtype=torch.float64).round(
        decimals=1
    )
    whole = states(11)
    ops.absorb_(whole, logits, 0.7)
    for cuts in ([1], [350, 351], [5, 100, 600]):
        pieces = states(11)
        for part in logits.tensor_split(cuts, dim=1):
            ops.absorb_(pieces, part, 0.7)
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def test_the_plain_torch_reference_agrees():
    logits = torch.randn(9, 50, dtype=torch.float64).round(decimals=1)
    logits[1, 3] = math.nan
    logits[2, :49] = -math.inf
    ours, plain = states(9), states(9)
    for part in logits.tensor_split([7, 20], dim=1):
        ops.absorb_(ours, part, 1.3)
        reference.absorb_(plain, part, 1.3)
    rows = [0, *range(2, 9)]
    torch.testing.assert_close(ours[:, rows], plain[:, rows])
    assert ours[5].tolist() == plain[5].tolist() == [0, 1, *[0] * 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck_and_compile(dtype, device):
    logits = torch.randn(4, 6, device=device).to(dtype)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    torch.library.opcheck(torch.ops.prunefuse.absorb_.default, (states(4, result, device), logits, 0.5))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def absorbed(logits):
        state = torch.zeros(6, 4, dtype=result, device=device)
        state[:2] = -math.inf
        torch.ops.prunefuse.absorb_(state, logits * 2, 0.5)
        return state

    expected = states(4, result, device)
    ops.absorb_(expected, logits * 2, 0.5)
    torch.testing.assert_close(absorbed(logits), expected)


def test_wrong_states_are_refused():
    with pytest.raises(RuntimeError, match=r"state must be contiguous, of shape \(6, 3\)"):
        ops.absorb_(torch.zeros(6, 4), torch.zeros(3, 2), 1.0)
    with pytest.raises(RuntimeError, match="state must be Float, got Double"):
        ops.absorb_(torch.zeros(6, 3).double(), torch.zeros(3, 2), 1.0)
