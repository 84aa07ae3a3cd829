"""One layer: costs of columns and refits against least squares by another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse.pruning._obspa.algebra import refit, removal_costs


def layer(seed: int, groups: int, rows: int, columns: int, samples: int):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(groups, columns, samples, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return weight, x, x @ x.mT


def with_damping(x, y, weight, damping):
    """Inputs and outputs with rows added that make the damped problem a plain one."""
    amount = damping * (x @ x.T).diagonal().mean()
    root = amount.sqrt() * torch.eye(len(x), dtype=x.dtype)
    return torch.cat([x, root], 1), torch.cat([y, weight @ root], 1)


SHAPES = st.tuples(
    st.integers(0, 999), st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(20, 40)
)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from([0.0, 1e-3, 0.5]), st.data())
def test_the_predicted_increase_of_the_loss_is_the_true_one(shape, damping, data):
    weight, x, gram = layer(*shape)
    columns = weight.shape[2]
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=columns, max_size=columns)))
    costs = removal_costs(weight, gram, labels, damping)
    assert set(costs) == set(labels.tolist()) - {0}
    for label, cost in costs.items():
        kept = torch.from_numpy(np.flatnonzero(labels != label))
        true = 0.0
        for w, inputs in zip(weight, x, strict=True):
            inputs, outputs = with_damping(inputs, w @ inputs, w, damping)
            best = torch.linalg.lstsq(inputs[kept].T, outputs.T, driver="gelsd").solution.T
            true += float((outputs - best @ inputs[kept]).square().sum())
        assert cost == pytest.approx(true, rel=1e-8)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from([0.0, 1e-3, 0.5]))
def test_a_refit_is_the_least_squares_solution(shape, damping):
    weight, x, gram = layer(*shape)
    wanted = weight @ x + torch.randn(weight.shape[1], x.shape[2], dtype=torch.float64)
    got = refit(weight, gram, wanted @ x.mT, damping)
    for w, inputs, outputs, result in zip(weight, x, wanted, got, strict=True):
        inputs, outputs = with_damping(inputs, outputs, w, damping)
        best = torch.linalg.lstsq(inputs.T, outputs.T, driver="gelsd").solution.T
        torch.testing.assert_close(result, best, rtol=1e-7, atol=1e-7 * float(best.abs().max()))


def test_on_unchanged_inputs_a_refit_is_the_closed_form():
    """Ŵ = (WH)[:,K](H[K,K])⁻¹, and its neighbor, W plus the Δ of one removed set."""
    weight, _, gram = layer(3, 1, 4, 6, 30)
    h = 2 * gram[0]
    kept, gone = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    got = refit(weight[:, :, kept], gram[:, kept][:, :, kept], (weight @ gram)[:, :, kept], 0.0)[0]
    torch.testing.assert_close(got, (weight[0] @ h)[:, kept] @ h[kept][:, kept].inverse())
    inverse = h.inverse()
    change = -weight[0][:, gone] @ inverse[gone][:, gone].inverse() @ inverse[gone]
    torch.testing.assert_close(got, (weight[0] + change)[:, kept])


def test_inputs_that_are_all_zero_cost_nothing_and_change_nothing():
    weight, gram = torch.ones(1, 2, 3, dtype=torch.float64), torch.zeros(1, 3, 3, dtype=torch.float64)
    assert removal_costs(weight, gram, np.array([1, 2, 2]), 0.01) == pytest.approx({1: 0, 2: 0}, abs=1e-12)
    torch.testing.assert_close(refit(weight, gram, torch.zeros_like(weight), 0.01), weight)


def test_too_few_inputs_without_damping_are_an_error():
    weight, _, gram = layer(0, 1, 2, 8, 3)
    with pytest.raises(ValueError, match="damping must be larger, or calibration must be more inputs"):
        removal_costs(weight, gram * 0, np.ones(8, dtype=int), 0.0)
