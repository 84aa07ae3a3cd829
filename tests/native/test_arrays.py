"""What every public function takes and gives back, and the errors of wrong input."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import prunefuse


def test_numpy_in_numpy_out():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    utilities = prunefuse.score(logits, ("entropy", "margin"))
    assert all(isinstance(u, np.ndarray) and u.dtype == np.float32 for u in utilities.values())
    assert isinstance(prunefuse.statistics(logits).argmax, np.ndarray)
    np.testing.assert_array_equal(prunefuse.statistics(logits).argmax, logits.argmax(1))


def test_unusual_numpy_arrays():
    logits = np.random.default_rng(0).normal(size=(6, 4))
    expected = prunefuse.score(logits)
    np.testing.assert_allclose(prunefuse.score(np.asfortranarray(logits)), expected)
    np.testing.assert_allclose(prunefuse.score(logits[::-1]), expected[::-1])
    np.testing.assert_allclose(prunefuse.score(logits.astype(">f8")), expected)
    frozen = logits.copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(prunefuse.score(frozen), expected)
    assert prunefuse.score(logits.astype(np.float16)).dtype == np.float32


class Foreign:
    """An array of another library: nothing but DLPack."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def streamed(logits, indices):
    keeper = prunefuse.StreamingTopB(2)
    keeper.update(logits)
    keeper.update(logits, indices)
    return keeper.result()


def of_passes(logits):
    scores = prunefuse.EnsembleScores()
    scores.update(logits)
    scores.update(logits)
    return *scores.result().values(), scores.probabilities()


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (prunefuse.score, [torch.randn(3, 4)]),
        (prunefuse.statistics, [torch.randn(3, 4)]),
        (prunefuse.score_linear, [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]),
        (lambda x: tuple(prunefuse.score_ensemble(x).values()), [torch.randn(2, 3, 4)]),
        (of_passes, [torch.randn(3, 4)]),
        (lambda x, mask: prunefuse.score_tokens(x, mask=mask), [torch.randn(2, 3, 4), torch.ones(2, 3) > 0]),
        (
            lambda x, w, mask: prunefuse.score_sequences(x, w, mask=mask),
            [torch.randn(2, 3, 4), torch.randn(5, 4), torch.ones(2, 3) > 0],
        ),
        (lambda x: prunefuse.top_b(x, 2), [torch.randn(5)]),
        (
            lambda x, labeled: prunefuse.k_center_greedy(x, 2, labeled),
            [torch.randn(5, 3), torch.tensor([1, 4])],
        ),
        (streamed, [torch.randn(3, 4), torch.tensor([7, 9, 8])]),
    ],
    ids=[
        *("score", "statistics", "linear", "ensemble", "passes", "tokens", "sequences"),
        *("top_b", "k_center", "streaming"),
    ],
)
def test_dlpack(function, arrays):
    """Whatever takes an array takes one that has DLPack alone, and answers with tensors."""
    expected = function(*arrays)
    got = function(*map(Foreign, arrays))
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, expected)), strict=True):
        assert isinstance(one, torch.Tensor)
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_do_not_flow():
    assert not prunefuse.score(torch.randn(3, 4, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0, 2.0]],), TypeError, "logits must be a torch tensor, a NumPy array .* got list"),
        ((np.array([["a"]]),), TypeError, "logits must be an array of numbers, got dtype <U1"),
        ((torch.zeros(2, 2, dtype=torch.int64),), TypeError, "logits must be float16, .* got torch.int64"),
        ((torch.zeros(2),), RuntimeError, r"score: logits must have 2 dimension\(s\), got 1"),
        ((torch.zeros(2, 0),), RuntimeError, "logits must have at least one class"),
        (
            (torch.zeros(2, 2), "Entropy"),
            ValueError,
            "must be one of least_confidence, margin, entropy, energy, logit_margin, got 'Entropy'",
        ),
        ((torch.zeros(2, 2), ()), ValueError, "strategy must name one or more"),
        ((torch.zeros(2, 2), ("margin", "margin")), ValueError, "different strategies"),
        ((torch.zeros(2, 2), 3), TypeError, "strategy must be a name or a tuple of names, got 3"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        prunefuse.score(*arguments)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), 1e-31])
def test_wrong_temperatures(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        prunefuse.score(torch.zeros(2, 2), temperature=temperature)
    with pytest.raises(TypeError, match="temperature must be a number, got str"):
        prunefuse.score(torch.zeros(2, 2), temperature="hot")


def test_temperature_may_be_a_numpy_number():
    logits = torch.randn(2, 3)
    expected = prunefuse.score(logits, temperature=2.0)
    for number in (np.float32(2), np.float64(2), np.int64(2)):
        assert torch.equal(prunefuse.score(logits, temperature=number), expected)


def in_new_process(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_using_every_name_imports_torch_and_nothing_heavier():
    code = """
import sys, torch
before = set(sys.modules)
import prunefuse, prunefuse.adapters
for name in prunefuse.__all__:
    getattr(prunefuse, name)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = new & {"scipy", "sklearn", "torchvision", "matplotlib", "rich", "fvcore", "typer", "click", "pandas"}
print(sorted(heavy))
"""
    result = in_new_process(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_instruction_set_can_be_chosen_by_environment():
    code = "import prunefuse.ops.loader as l; print(l.native.isa_level())"
    assert in_new_process(code, PRUNEFUSE_ISA="baseline").stdout.strip() == "baseline"
    wrong = in_new_process(code, PRUNEFUSE_ISA="mmx")
    assert "PRUNEFUSE_ISA=mmx is not one of baseline, avx2, avx512" in wrong.stderr
    assert wrong.returncode == 0


def test_forcing_an_unknown_level_is_an_error():
    from prunefuse.ops import loader

    with pytest.raises(ValueError, match="level must be one of isa_levels"):
        loader.native.force_isa("mmx")


def test_facts_say_what_a_bug_report_needs():
    from prunefuse.ops import loader

    facts = loader.facts()
    assert facts["prunefuse"].startswith(prunefuse.__version__)
    assert "2.11" in facts["ABI target"]
    assert loader.native.isa_level() in facts["instruction set"]
    assert facts["CUDA library"] == (
        "loaded" if not loader.why_no_cuda else f"not loaded: {loader.why_no_cuda}"
    )
