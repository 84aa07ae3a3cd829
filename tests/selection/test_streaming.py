"""What a stream keeps, against `top_b` of the whole: any cut, any order, any merging."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunefuse
from prunefuse import StreamingTopB

number = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, math.inf, -math.inf, math.nan, 2.0**-149])


def own_utility(logits):
    """The first column, of whatever kind the rows are."""
    return logits[:, 0]


def sorted_picks(utilities, indices, b):
    """The b best of (utility, index), by sorting in Python."""
    pairs = sorted((-u, i) for u, i in zip(utilities, indices, strict=True) if not math.isnan(u))
    return [i for _, i in pairs][:b], [-u for u, _ in pairs][:b]


def column(utilities, device="cpu"):
    return torch.tensor(utilities, dtype=torch.float32, device=device).reshape(-1, 1)


def small_steps(wanted):
    """Lets a stream of a few rows go through all that a long one goes through."""
    if not wanted:
        return nullcontext()
    return mock.patch.multiple("prunefuse.selection._candidates", _SLACK_CPU=2048, _SLACK_GPU=2048)


@st.composite
def streams(draw):
    utilities = draw(st.lists(number, min_size=1, max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(utilities)), max_size=6)))
    return utilities, [slice(a, z) for a, z in zip([0, *cuts], [*cuts, len(utilities)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(1, 60), st.booleans())
def test_any_cut_gives_what_top_b_picks_of_the_whole(stream, b, small):
    utilities, parts = stream
    keeper = StreamingTopB(b, own_utility)
    with small_steps(small):
        for part in parts:
            keeper.update(column(utilities[part]))
    selectable = sum(not math.isnan(u) for u in utilities)
    assert (keeper.rows, keeper.unselectable) == (len(utilities), len(utilities) - selectable)
    if selectable < b:
        with pytest.raises(
            ValueError, match=f"b is {b}, but only {selectable} of the {len(utilities)} rows seen"
        ):
            keeper.result()
        return
    indices, values = keeper.result()
    expected, best = prunefuse.top_b(column(utilities)[:, 0], b)
    assert torch.equal(indices, expected)
    assert torch.equal(values, best)
    assert indices.dtype == torch.int64


@settings(max_examples=300, deadline=None)
@given(streams(), st.randoms(use_true_random=False), st.booleans())
def test_any_order_and_any_merging_give_the_same(stream, random, small):
    utilities, parts = stream
    selectable = sum(not math.isnan(u) for u in utilities)
    b = max(1, selectable // 2)
    if selectable < b:
        return
    order = list(range(len(utilities)))
    random.shuffle(order)
    keepers = [StreamingTopB(b, own_utility) for _ in range(3)]
    with small_steps(small):
        for part in parts:
            rows = order[part]
            batch = column([utilities[i] for i in rows])
            random.choice(keepers).update(batch, torch.tensor(rows, dtype=torch.int64))
        first, second, third = keepers
        second.merge(third)
        before = third.rows
        first.merge(second)
    assert third.rows == before
    assert (first.rows, first.unselectable) == (len(utilities), len(utilities) - selectable)
    indices, values = first.result()
    expected, best = sorted_picks(utilities, range(len(utilities)), b)
    assert (indices.tolist(), values.tolist()) == (expected, best)


@pytest.mark.parametrize("kind", ["random", "ascending", "descending", "constant", "few_values"])
@pytest.mark.parametrize("b", [1, 100, 20_000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_long_streams_whose_candidates_overflow_many_times(kind, b, shuffled, device):
    n = 200_003
    generator = torch.Generator().manual_seed(0)
    utilities = {
        "random": torch.rand(n, generator=generator),
        "ascending": torch.arange(n).float(),
        "descending": -torch.arange(n).float(),
        "constant": torch.ones(n),
        "few_values": torch.randint(0, 5, (n,), generator=generator).float(),
    }[kind].to(device)
    utilities[::1001] = math.nan
    order = torch.randperm(n, generator=generator) if shuffled else torch.arange(n)
    keeper = StreamingTopB(b, own_utility)
    for batch in order.to(device).split(30_011):
        keeper.update(utilities[batch, None], batch if shuffled else None)
    indices, values = keeper.result()
    expected, best = prunefuse.top_b(utilities, b)
    assert torch.equal(indices, expected)
    assert torch.equal(values, best)
    assert keeper.unselectable == 200


def test_memory_is_that_of_b_and_the_batch():
    """No tensor of the state grows with the stream, in the worst order and with ties alone."""
    for worst in (lambda i: torch.full((5_000, 1), float(i)), lambda i: torch.zeros(5_000, 1)):
        keeper = StreamingTopB(100, own_utility)
        for i in range(60):
            keeper.update(worst(i), torch.arange(i * 5_000, (i + 1) * 5_000))
            held = [value.numel() for value in vars(keeper._kept).values() if isinstance(value, torch.Tensor)]
            assert 200 < sum(held) <= 2 * (2 * 100 + 3 * 2048) + 4


@pytest.mark.parametrize("strategy", ["least_confidence", "margin", "entropy"])
def test_strategies_by_name_are_those_of_score(strategy, device):
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(1)).to(device)
    keeper = StreamingTopB(20, strategy, temperature=2.5)
    for part in logits.split(64):
        keeper.update(part)
    expected = prunefuse.top_b(prunefuse.score(logits, strategy, temperature=2.5), 20)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(keeper.result(), expected, strict=True))
    keeper = StreamingTopB(20, strategy, probabilities=True)
    keeper.update(logits.softmax(1))
    expected = prunefuse.top_b(prunefuse.score(logits.softmax(1), strategy, probabilities=True), 20)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(keeper.result(), expected, strict=True))


def test_indices_go_on_from_the_highest():
    keeper = StreamingTopB(1, own_utility)
    keeper.update(column([0.0, 1.0]))
    assert keeper.result()[0].tolist() == [1]
    keeper.update(column([2.0, 3.0]), torch.tensor([40, 7], dtype=torch.int32))
    assert keeper.result()[0].tolist() == [7]
    keeper.update(column([4.0]))
    assert keeper.result()[0].tolist() == [41]


def test_an_index_given_twice_stands_for_two_rows():
    keeper = StreamingTopB(3, own_utility)
    keeper.update(column([1.0, 3.0, 2.0]), torch.tensor([5, 5, 6]))
    indices, values = keeper.result()
    assert (indices.tolist(), values.tolist()) == ([5, 6, 5], [3.0, 2.0, 1.0])


def test_numpy_in_numpy_out_and_the_function_gets_what_was_given():
    def utility(logits):
        assert isinstance(logits, np.ndarray)
        return logits.max(1)

    keeper = StreamingTopB(2, utility)
    keeper.update(np.array([[1.0, 2.0], [5.0, 0.0], [3.0, 1.0]]), np.array([3, 4, 5]))
    indices, values = keeper.result()
    assert isinstance(indices, np.ndarray)
    assert indices.tolist() == [4, 5]
    assert values.dtype == np.float64


def test_the_result_and_the_batches_are_the_callers_own():
    keeper = StreamingTopB(2, own_utility)
    batch = column([1.0, 2.0, 3.0])
    indices = torch.arange(3)
    keeper.update(batch, indices)
    batch.zero_()
    indices.zero_()
    for part in keeper.result():
        part.zero_()
    assert [part.tolist() for part in keeper.result()] == [[2, 1], [3.0, 2.0]]
    keeper.update(column([4.0]))  # and it goes on after a result
    assert keeper.result()[0].tolist() == [3, 2]


def test_wider_utilities_widen_the_result():
    keeper = StreamingTopB(2, own_utility)
    keeper.update(torch.ones(2, 1, dtype=torch.bfloat16))
    assert keeper.result()[1].dtype == torch.float32
    keeper.update(torch.full((2, 1), 1 + 1e-12, dtype=torch.float64))
    assert keeper.result()[1].tolist() == [1 + 1e-12] * 2


def test_a_saved_stream_goes_on_exactly(tmp_path, device):
    logits = torch.randn(400, 5, generator=torch.Generator().manual_seed(2)).to(device)
    logits[::9] = math.nan
    whole, half = StreamingTopB(30, "margin", temperature=0.1), StreamingTopB(30, "margin", temperature=0.1)
    whole.update(logits)
    half.update(logits[:150])
    half.save(tmp_path / "state.safetensors")
    loaded = StreamingTopB.load(tmp_path / "state.safetensors")
    loaded.update(logits[150:])
    assert all(torch.equal(a, b) for a, b in zip(loaded.result(), whole.result(), strict=True))
    assert (loaded.b, loaded.rows, loaded.unselectable) == (30, 400, whole.unselectable)


def test_a_saved_stream_may_be_empty_short_or_of_a_function(tmp_path):
    path = tmp_path / "state.safetensors"
    StreamingTopB(3).save(path)
    loaded = StreamingTopB.load(path)
    loaded.update(torch.eye(3))
    assert loaded.result()[0].tolist() == [0, 1, 2]
    short = StreamingTopB(3, own_utility)
    short.update(np.array([[1.0], [math.nan], [2.0]]))
    short.save(path)
    loaded = StreamingTopB.load(path, own_utility)
    assert (loaded.rows, loaded.unselectable) == (3, 1)
    loaded.update(np.array([[1.5]]))
    assert loaded.result()[0].tolist() == [2, 3, 0]
    with pytest.raises(ValueError, match=r"strategy must be the function that .* was saved with, got None"):
        StreamingTopB.load(path)
    StreamingTopB(3).save(path)
    with pytest.raises(
        ValueError, match=r"strategy must be None, for 'entropy' that .* was saved with, got <"
    ):
        StreamingTopB.load(path, own_utility)


def test_what_is_not_a_saved_stream_is_refused(tmp_path):
    from prunefuse._files import save_tensors

    path = tmp_path / "state.safetensors"
    save_tensors(path, {"indices": torch.zeros(1)})
    with pytest.raises(ValueError, match="is not a saved StreamingTopB"):
        StreamingTopB.load(path)
    StreamingTopB(3).save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        StreamingTopB.load(path)
    with pytest.raises(FileNotFoundError):
        StreamingTopB.load(tmp_path / "none")


def test_the_state_is_readable_by_anyone(tmp_path):
    from safetensors import safe_open

    keeper = StreamingTopB(2)
    keeper.update(torch.eye(4))
    keeper.save(tmp_path / "s")
    with safe_open(tmp_path / "s", framework="np") as file:
        assert json.loads(file.metadata()["state"])["strategy"] == "entropy"
        assert file.get_tensor("indices").tolist() == [0, 1]


def test_merging_refuses_what_cannot_be_compared():
    keeper = StreamingTopB(2, "margin")
    for other in (StreamingTopB(3, "margin"), StreamingTopB(2), StreamingTopB(2, "margin", temperature=2.0)):
        with pytest.raises(ValueError, match="other must be of the same settings"):
            keeper.merge(other)
    with pytest.raises(TypeError, match="other must be a StreamingTopB, got list"):
        keeper.merge([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"b": 0}, ValueError, "b must be at least 1, got 0"),
        ({"b": 1.0}, TypeError, "b must be an integer, got float"),
        ({"b": 1, "strategy": "best"}, ValueError, "strategy must be one of .*, got 'best'"),
        ({"b": 1, "strategy": 3}, TypeError, "strategy must be a name or a function of the logits, got 3"),
        ({"b": 1, "temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"b": 1, "strategy": own_utility, "temperature": 2.0}, ValueError, "are for strategies by name"),
    ],
)
def test_wrong_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        StreamingTopB(**arguments)


@pytest.mark.parametrize(
    ("strategy", "logits", "indices", "error", "message"),
    [
        ("entropy", torch.zeros(3), None, RuntimeError, "logits must have 2 dimension"),
        ("entropy", torch.zeros(3, 2, dtype=torch.int64), None, TypeError, "logits must be float16"),
        (
            "entropy",
            torch.zeros(3, 2),
            torch.arange(2),
            ValueError,
            r"indices must have shape \(3,\).* got \(2,\)",
        ),
        (
            "entropy",
            torch.zeros(3, 2),
            torch.zeros(3),
            TypeError,
            "indices must be integers, got torch.float32",
        ),
        ("entropy", torch.zeros(3, 2), [1, 2, 3], TypeError, "indices must be a torch tensor"),
        (
            lambda x: x,
            torch.zeros(3, 2),
            None,
            ValueError,
            r"strategy must return 3 utilities.* got shape \(3, 2\)",
        ),
        (lambda x: x.argmax(1), torch.zeros(3, 2), None, TypeError, "strategy's utilities must be float16"),
    ],
)
def test_a_wrong_batch_changes_nothing(strategy, logits, indices, error, message):
    keeper = StreamingTopB(1, strategy)
    with pytest.raises(error, match=message):
        keeper.update(logits, indices)
    assert (keeper.rows, keeper.unselectable) == (0, 0)


@pytest.mark.cuda
def test_a_stream_may_change_its_device_and_an_update_does_not_wait():
    keeper = StreamingTopB(2, own_utility)
    keeper.update(column([1.0, math.nan]))
    keeper.update(column([3.0, math.nan], "cuda"))
    batches = [column([2.0, math.nan], "cuda") for _ in range(3)]
    indices = torch.tensor([5, 4], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        keeper.update(batches[0])
        keeper.update(batches[1], indices + 2)
        keeper.update(batches[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    keeper.update(column([0.0]))
    assert [part.tolist() for part in keeper.result()] == [[2, 4], [3.0, 2.0]]
    assert (keeper.rows, keeper.unselectable) == (11, 5)


@settings(max_examples=150, deadline=None)
@given(streams(), st.integers(1, 60), st.booleans(), st.data())
def test_excluded_rows_are_as_if_they_were_not_there(stream, b, named, data):
    utilities, parts = stream
    rows = len(utilities)
    exclude = data.draw(st.lists(st.integers(0, rows + 5), max_size=10))
    keeper = StreamingTopB(b, own_utility, exclude=exclude)
    for part in parts:
        keeper.update(column(utilities[part]), torch.arange(rows)[part] if named else None)
    left = [math.nan if i in exclude else u for i, u in enumerate(utilities)]
    selectable = sum(not math.isnan(u) for u in left)
    assert keeper.rows == rows
    assert keeper.unselectable == sum(math.isnan(u) for i, u in enumerate(utilities) if i not in exclude)
    if selectable < b:
        with pytest.raises(ValueError, match=f"b is {b}, but only {selectable} of the {rows} rows seen"):
            keeper.result()
        return
    assert keeper.result()[0].tolist() == sorted_picks(left, range(rows), b)[0]


def test_what_is_excluded_is_saved_and_merged_only_with_the_same(tmp_path):
    rows = column([5.0, 9.0, 7.0, 8.0])
    keeper = StreamingTopB(2, own_utility, exclude=np.array([1]))
    keeper.update(rows)
    keeper.save(tmp_path / "kept")
    again = StreamingTopB.load(tmp_path / "kept", own_utility)
    again.update(rows)  # 4 to 7
    assert again.result()[0].tolist() == [5, 3]
    mask = StreamingTopB(2, own_utility, exclude=[False, True])
    mask.merge(keeper)
    assert mask.result()[0].tolist() == [3, 2]
    with pytest.raises(ValueError, match="other must exclude the same 0 rows, got one that excludes 1"):
        StreamingTopB(2, own_utility).merge(keeper)
    four = StreamingTopB(4, own_utility, exclude=[1])
    four.update(rows)
    with pytest.raises(ValueError, match=r"only 3 of the 4 rows seen .* \(the others are NaN or excluded\)"):
        four.result()


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ([-1], ValueError, "exclude must hold indices of the data set, from 0 on, got -1"),
        ([0.5], TypeError, "exclude must be a sequence of row indices"),
        ("12", TypeError, "exclude must be a sequence of row indices"),
        (7, TypeError, "exclude must be a sequence of row indices"),
    ],
)
def test_wrong_rows_to_exclude(exclude, error, message):
    with pytest.raises(error, match=message):
        StreamingTopB(2, exclude=exclude)


def test_excluding_waits_for_no_device(count_waits):
    def run(rows):
        keeper = StreamingTopB(2, own_utility, exclude=[1, 5])
        keeper.update(rows)
        keeper.update(rows)
        return keeper._kept._indices

    _, waits = count_waits(run, column([5.0, 9.0, 7.0, 8.0]))

    def without(rows):
        keeper = StreamingTopB(2, own_utility)
        keeper.update(rows)
        keeper.update(rows)
        return keeper._kept._indices

    _, expected = count_waits(without, column([5.0, 9.0, 7.0, 8.0]))
    assert waits == expected
