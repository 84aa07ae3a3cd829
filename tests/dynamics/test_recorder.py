"""Recorded scores against the full dump (dynamics_dump.py)."""

import math

import dynamics_dump as dump
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse import ops
from prunefuse.dynamics import (
    PRESETS,
    Aum,
    Dual,
    DynamicUncertainty,
    El2n,
    Forgetting,
    Grand,
    Loss,
    Recorder,
    Tdds,
)

DEFAULTS = ("du", "dual", "tdds", "forgetting", "el2n", "grand", "aum", "loss")


def training(epochs, samples, classes, seed=0, dtype=torch.float64):
    """Logits (T, N, C) as of a network that learns most samples and forgets some, labels, features (T, N, 7)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits = 2 * torch.randn(epochs, samples, classes, generator=generator, dtype=torch.float64)
    skill = torch.linspace(-2, 6, epochs)[:, None] * torch.rand(samples, generator=generator)
    logits[:, torch.arange(samples), labels] += skill.double()
    features = torch.randn(epochs, samples, 7, generator=generator)
    return logits.to(dtype), labels, features


def record(recorder, logits, labels, features=None, batch=7, epochs=None, seed=3):
    """Every epoch in an order of its own, in batches."""
    for t in range(len(logits)) if epochs is None else epochs:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + t))
        for rows in order.split(batch):
            h = (
                None
                if features is None
                else features[t, rows].to(recorder.state_dict()["tensors"]["seen"].device)
            )
            x = logits[t, rows]
            recorder.update(x, labels[rows], rows, h)
        assert len(recorder.end_epoch()) == 0
    return recorder


def assert_close(got, expected, rtol=1e-11):
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=rtol, atol=rtol)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    epochs=st.integers(1, 14),
    samples=st.integers(1, 23),
    classes=st.integers(2, 20),
    window=st.integers(2, 6),
    ddof=st.integers(0, 1),
    omitted=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_windows_of_the_probability(epochs, samples, classes, window, ddof, omitted, seed):
    logits, labels, _ = training(epochs, samples, classes, seed)
    options = {
        "du": DynamicUncertainty(window, ddof, omitted),
        "dual": Dual(window, ddof, omitted),
        "early": Dual(window, ddof, omitted, trajectory=window + omitted + 1),
    }
    recorder = record(Recorder(samples, options), logits, labels)
    if epochs < window + omitted:
        with pytest.raises(ValueError, match=f"du needs {window + omitted} epochs"):
            recorder.scores()
        return
    scores, p = recorder.scores(), dump.true_class(logits.numpy(), labels.numpy())
    assert_close(scores["du"], dump.du(p, window, ddof, omitted))
    assert_close(scores["dual"], dump.dual(p, window, ddof, omitted))
    assert_close(scores["early"], dump.dual(p, window, ddof, omitted, window + omitted + 1))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    epochs=st.integers(3, 14),
    samples=st.integers(1, 23),
    classes=st.integers(2, 20),
    window=st.integers(3, 6),
    beta=st.sampled_from([0.9, 0.5, 1.0, 0.1]),
    cut=st.sampled_from([None, 0, 1, 4]),
    epsilon=st.sampled_from([1e-8, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_tdds(epochs, samples, classes, window, beta, cut, epsilon, seed):
    logits, labels, _ = training(epochs, samples, classes, seed)
    trajectory = None if cut is None else window + cut
    option = Tdds(window, beta, trajectory, epsilon, "float64")
    recorder = record(Recorder(samples, {"tdds": option}, classes=classes), logits, labels)
    if epochs < window:
        with pytest.raises(ValueError, match=f"tdds needs {window} epochs"):
            recorder.scores()
        return
    assert_close(recorder.scores()["tdds"], dump.tdds(logits.numpy(), window, beta, trajectory, epsilon))


def test_tdds_over_one_window_is_its_share_of_it():
    logits, labels, _ = training(6, 20, 9)
    recorder = record(Recorder(20, {"tdds": Tdds(window=6, dtype="float64")}, classes=9), logits, labels)
    q = torch.softmax(logits, 2)
    logs = (q + 1e-8).log()
    d = (q[1:] * (logs[1:] - logs[:-1])).abs().sum(2)
    assert_close(recorder.scores()["tdds"], 0.9 * (d - d.mean(0)).norm(dim=0))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float64", 1e-11), ("float32", 1e-5), ("float16", 2e-2), ("bfloat16", 0.2)]
)
def test_tdds_keeps_what_it_is_told_to(dtype, rtol):
    logits, labels, _ = training(9, 50, 30)
    recorder = record(Recorder(50, {"tdds": Tdds(window=5, dtype=dtype)}, classes=30), logits, labels)
    assert recorder.state_dict()["tensors"]["0.kept"].dtype == getattr(torch, dtype)
    assert_close(recorder.scores()["tdds"], dump.tdds(logits.numpy(), 5, 0.9), rtol)


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_the_scores_of_single_epochs(classes):
    logits, labels, features = training(6, 40, classes)
    options = {
        "el2n": El2n(),
        "some": El2n(epochs=(2, 5)),
        "grand": Grand(),
        "late": Grand(epochs=(6,), bias=False),
        "forgetting": Forgetting(),
        "aum": Aum(),
        "loss": Loss(),
        "last": Loss("last"),
    }
    scores = record(Recorder(40, options), logits, labels, features).scores()
    x, y, h = logits.numpy(), labels.numpy(), features.double().numpy()
    norms = dump.el2n(x, y)
    lengths = np.square(h).sum(2)
    assert_close(scores["el2n"], norms.mean(0))
    assert_close(scores["some"], dump.el2n(x, y, (2, 5)).mean(0))
    assert_close(scores["grand"], (norms * np.sqrt(lengths + 1)).mean(0))
    assert_close(scores["late"], norms[5] * np.sqrt(lengths[5]))
    assert_close(scores["aum"], dump.margins(x, y).mean(0))
    assert_close(scores["loss"], dump.losses(x, y).mean(0))
    assert_close(scores["last"], dump.losses(x, y)[-1])
    expected = dump.forgetting(x, y)
    np.testing.assert_array_equal(scores["forgetting"], expected)
    assert np.isinf(expected).any() or classes == 2
    assert (expected[np.isfinite(expected)] > 0).any()


def test_grand_is_the_norm_of_the_gradient():
    layer = torch.nn.Linear(7, 4).double()
    h, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(4, (5,))
    recorder = Recorder(5, ("grand",))
    recorder.update(layer(h).detach(), labels, torch.arange(5), h)
    for i, score in enumerate(recorder.scores()["grand"]):
        loss = torch.nn.functional.cross_entropy(layer(h[i : i + 1]), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        assert math.isclose(score, math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel_tol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name):
    logits, labels, features = training(95, 12, 5)
    recorder = Recorder(12, (name,), classes=5)
    record(recorder, logits, labels, features if name == "grand" else None)
    x, y = logits.numpy(), labels.numpy()
    p = dump.true_class(x, y)
    expected = {
        "du": lambda: dump.du(p, 10, 1, 1),
        "du:paper": lambda: np.mean([p[k : k + 10].std(0, ddof=1) for k in range(95 - 10)], 0),
        "du:every-window": lambda: np.mean([p[k : k + 10].std(0, ddof=1) for k in range(95 - 9)], 0),
        "dual": lambda: dump.dual(p, 10, 1, 0),
        "dual:cifar": lambda: dump.dual(p[:30], 10, 1, 0),
        "tdds": lambda: dump.tdds(x, 10, 0.9),
        "tdds:cifar100-30%": lambda: dump.tdds(x[:90], 10, 0.9),
        "tdds:cifar100-50%": lambda: dump.tdds(x[:70], 10, 0.9),
        "tdds:cifar100-70%": lambda: dump.tdds(x[:60], 20, 0.9),
        "tdds:cifar100-80%": lambda: dump.tdds(x[:20], 10, 0.9),
        "tdds:cifar100-90%": lambda: dump.tdds(x[:10], 5, 0.9),
        "forgetting": lambda: dump.forgetting(x, y),
        "el2n": lambda: dump.el2n(x, y).mean(0),
        "grand": lambda: (dump.el2n(x, y) * np.sqrt(np.square(features.double().numpy()).sum(2) + 1)).mean(0),
        "aum": lambda: dump.margins(x, y).mean(0),
        "loss": lambda: dump.losses(x, y).mean(0),
    }[name]()
    assert_close(recorder.scores()[name], expected, 1e-5 if name.startswith("tdds") else 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_any_precision(device, dtype):
    logits, labels, features = training(12, 60, 11, dtype=dtype)
    recorder = Recorder(60, DEFAULTS, classes=11, device=device)
    record(recorder, logits.to(device), labels, features)
    x, y = logits.double().numpy(), labels.numpy()
    p = dump.true_class(x, y)
    scores = recorder.scores()
    assert all(s.dtype == torch.float64 and s.device.type == device for s in scores.values())
    assert_close(scores["du"], dump.du(p, 10, 1, 1), 2e-6)
    assert_close(scores["dual"], dump.dual(p, 10, 1, 0), 2e-6)
    assert_close(scores["tdds"], dump.tdds(x, 10, 0.9), 2e-5)
    assert_close(scores["aum"], dump.margins(x, y).mean(0), 2e-6)
    np.testing.assert_array_equal(scores["forgetting"].cpu(), dump.forgetting(x, y))


def test_sure_samples_keep_their_order():
    """Probabilities that float32 rounds to 1 still differ, and so do their deviations."""
    gaps = torch.linspace(18, 30, 40)
    labels = torch.zeros(40, dtype=torch.int64)
    recorder = Recorder(40, {"du": DynamicUncertainty(window=3, omitted=0)})
    for t in range(3):
        logits = torch.stack([gaps + t, torch.zeros(40)], 1)
        recorder.update(logits, labels, torch.arange(40))
        recorder.end_epoch()
    scores = recorder.scores()["du"]
    assert (scores[1:] < scores[:-1]).all()


def test_from_probabilities_alone():
    p = torch.rand(15, 30, dtype=torch.float64)
    recorder = Recorder(30, ("du", "dual"))
    for row in p:
        for rows in torch.randperm(30).split(11):
            recorder.update_probability(row[rows], rows)
        recorder.end_epoch()
    scores = recorder.scores()
    assert_close(scores["du"], dump.du(p.numpy(), 10, 1, 1))
    assert_close(scores["dual"], dump.dual(p.numpy(), 10, 1, 0))
    single = Recorder(2, {"du": DynamicUncertainty(2, omitted=0)})
    for value in (0.25, 0.75):
        single.update_probability(np.array([value, 1], np.float16), np.array([1, 0]))
        single.end_epoch()
    assert single.scores()["du"].tolist() == [0, math.sqrt(0.125)]


SEQUENCES = ("loss", "du", "du:every-window", "dual", "dual:cifar")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_from_losses_alone(dtype):
    """Sequences by the mean loss of their tokens; exp(-loss) is their probability."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.rand(35, 20, 9, generator=generator, dtype=torch.float64) * 3  # epochs, sequences, tokens
    means = tokens.mean(2).to(dtype)
    recorder = Recorder(20, {**{name: PRESETS[name] for name in SEQUENCES}, "last": Loss("last")})
    for t, row in enumerate(means):
        for rows in torch.randperm(20, generator=generator).split(6):
            recorder.update_losses(
                row[rows].numpy() if t == 0 and dtype == torch.float16 else row[rows], rows
            )
        assert len(recorder.end_epoch()) == 0
    losses = means.double().numpy()
    p = np.exp(-losses)
    scores = recorder.scores()
    assert_close(scores["loss"], losses.mean(0))
    assert_close(scores["last"], losses[-1])
    assert_close(scores["du"], dump.du(p, 10, 1, 1))
    assert_close(scores["du:every-window"], dump.du(p, 10, 1, 0))
    assert_close(scores["dual"], dump.dual(p, 10, 1, 0))
    assert_close(scores["dual:cifar"], dump.dual(p[:30], 10, 1, 0))


def test_losses_are_those_of_logits():
    """A classifier's samples, recorded by either, and by both in turns with a file between."""
    logits, labels, _ = training(12, 30, 6)
    names = ("loss", "du", "dual")
    expected = record(Recorder(30, names), logits, labels).scores()
    losses = torch.stack([torch.nn.functional.cross_entropy(x, labels, reduction="none") for x in logits])
    recorder, rows = Recorder(30, names), torch.arange(30)
    for t in range(12):
        recorder.update(logits[t, :10], labels[:10], rows[:10])
        recorder = Recorder.from_state(recorder.state_dict())
        recorder.update_losses(losses[t, 10:], rows[10:])
        recorder.end_epoch()
    for name, values in recorder.scores().items():
        assert_close(values, expected[name], 1e-9)


def test_losses_that_are_not_finite():
    recorder = Recorder(3, {"loss": Loss(), "du": DynamicUncertainty(2, omitted=0)})
    for losses in ([0.0, math.inf, math.nan], [0.5, 0.5, 0.5]):
        recorder.update_losses(torch.tensor(losses), torch.arange(3))
        recorder.end_epoch()
    scores = recorder.scores()
    assert scores["loss"].isnan().tolist() == scores["du"].isnan().tolist() == [False, False, True]
    assert scores["loss"][:2].tolist() == [0.25, math.inf]
    assert_close(scores["du"][:2], np.std([[1, 0], [math.exp(-0.5)] * 2], axis=0, ddof=1))


def test_what_is_wrong_with_losses_is_said_and_nothing_is_written():
    recorder = Recorder(4, ("loss", "du"))
    recorder.update_losses(torch.ones(2), torch.tensor([0, 2]))
    before = {name: t.clone() for name, t in recorder.state_dict()["tensors"].items()}
    good = {"losses": torch.ones(2), "indices": torch.tensor([1, 3])}
    for change, error, message in (
        ({"losses": torch.tensor([1.0, -0.5])}, ValueError, "losses must be 0 or more, got -0.5"),
        ({"losses": torch.ones(2, 1)}, ValueError, r"losses must have shape \(rows,\), got \(2, 1\)"),
        ({"losses": torch.ones(3)}, ValueError, r"indices must have shape \(3,\)"),
        ({"losses": torch.ones(2).int()}, TypeError, "losses must be float16"),
        ({"losses": [1.0, 2.0]}, TypeError, "losses must be a torch tensor"),
        (
            {"losses": torch.ones(2, device="meta")},
            ValueError,
            "losses must be on the recorder's device, cpu",
        ),
        ({"indices": torch.tensor([1, 2])}, RuntimeError, "got 2 again in row 1"),
        ({"indices": torch.tensor([1, 4])}, RuntimeError, r"indices must lie in \[0, 4\), got 4 in row 1"),
    ):
        with pytest.raises(error, match=message):
            recorder.update_losses(**{**good, **change})
        for name, tensor in recorder.state_dict()["tensors"].items():
            assert torch.equal(tensor, before[name]), (change, name)
    with pytest.raises(ValueError, match="losses are not enough for el2n, aum: give logits to update"):
        Recorder(2, ("el2n", "loss", "aum")).update_losses(torch.ones(2), torch.arange(2))
    # A loss of any kind has a mean.
    alone = Recorder(2, ("loss",))
    alone.update_losses(torch.tensor([-1.0, 2.0]), torch.arange(2))
    assert alone.scores()["loss"].tolist() == [-1, 2]


def test_samples_that_miss_epochs():
    """Windows are over the epochs in which a sample was seen; until then its scores are NaN."""
    logits, labels, _ = training(6, 4, 5)
    options = {
        "du": DynamicUncertainty(3, omitted=0),
        "tdds": Tdds(4, dtype="float64"),
        "el2n": El2n(),
        "f": Forgetting(),
    }
    recorder = Recorder(4, options, classes=5)
    present = {0: range(6), 1: (0, 2, 3, 5), 2: (1, 4), 3: ()}
    for t in range(6):
        rows = torch.tensor([i for i, epochs in present.items() if t in epochs])
        recorder.update(logits[t, rows], labels[rows], rows)
        assert recorder.end_epoch().tolist() == [i for i, epochs in present.items() if t not in epochs]
    scores = recorder.scores()
    for name, least in (("du", 3), ("tdds", 4), ("el2n", 1), ("f", 2)):
        assert [bool(s.isnan()) for s in scores[name]] == [len(e) < least for e in present.values()], name
    few = logits[list(present[1])][:, 1:2].numpy()
    assert_close(scores["du"][1:2], dump.du(dump.true_class(few, labels[1:2].numpy()), 3, 1, 0))
    assert_close(scores["tdds"][1:2], dump.tdds(few, 4, 0.9))


def test_a_row_without_a_distribution_makes_its_sample_nan():
    logits, labels, features = training(12, 6, 5)
    logits[3, 2, 1] = math.nan
    logits[11, 4] = -math.inf
    scores = record(Recorder(6, DEFAULTS, classes=5), logits, labels, features).scores()
    for name, values in scores.items():
        # The last window of all does not count for dynamic uncertainty; it is the one that epoch 12 is in.
        expected = [2] if name == "du" else [2, 4]
        assert values.isnan().nonzero()[:, 0].tolist() == expected, name


def test_resumed_in_mid_epoch_it_goes_on_to_the_same_bits(tmp_path, device):
    logits, labels, features = training(12, 30, 6, dtype=torch.float32)
    logits = logits.to(device)
    one = record(Recorder(30, DEFAULTS, classes=6, device=device), logits, labels, features, epochs=range(11))
    whole = Recorder.from_state(one.state_dict(), device)
    half = torch.arange(15)
    for recorder in (one, whole):
        recorder.update(logits[11, :15], labels[:15], half, features[11, :15].to(device))
    one.save(tmp_path / "state.safetensors")
    loaded = Recorder.load(tmp_path / "state.safetensors", device)
    assert loaded.unseen().tolist() == list(range(15, 30))
    assert (loaded.epoch, loaded.options, loaded.forward) == (11, one.options, "training")
    for recorder in (whole, loaded):
        recorder.update(logits[11, 15:], labels[15:], half + 15, features[11, 15:].to(device))
        recorder.end_epoch()
    for name, values in whole.scores().items():
        assert torch.equal(values, loaded.scores()[name]), name
    for name, tensor in whole.state_dict()["tensors"].items():
        assert torch.equal(tensor, loaded.state_dict()["tensors"][name]), name
    assert one.unseen().tolist() == list(range(15, 30))  # its own state was copied


def test_options_survive_a_file(tmp_path):
    options = {
        "a": DynamicUncertainty(4, 0, 2, "evaluation"),
        "b": Tdds(5, 0.3, 7, 1e-6, "bfloat16"),
        "c": El2n((2, 4)),
        "d": Grand((1,), False),
        "e": Loss("last"),
        "f": Dual(3, 0, 1, 9),
    }
    recorder = Recorder(3, options, classes=2, forward="evaluation")
    recorder.save(tmp_path / "r")
    again = Recorder.load(tmp_path / "r")
    assert again.options == options
    assert again.forward == "evaluation"


def test_files_that_are_no_recorder(tmp_path):
    from prunefuse import _files as files

    files.save_tensors(tmp_path / "other", {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="not a saved Recorder"):
        Recorder.load(tmp_path / "other")
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Recorder.load(tmp_path / "text")
    state = Recorder(3).state_dict()
    with pytest.raises(ValueError, match="that of a recorder of these scores and samples, got another"):
        Recorder.from_state({"config": state["config"] | {"samples": 4}, "tensors": state["tensors"]})
    with pytest.raises(ValueError, match="must be of format"):
        Recorder.from_state({"config": {}, "tensors": {}})


def test_what_is_wrong_with_a_batch_is_said_and_nothing_is_written():
    recorder = Recorder(10, ("forgetting", "grand", "tdds", "du"), classes=4)
    x, y, rows, h = torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 5, 7]), torch.zeros(3, 2)
    recorder.update(x, y, rows, h)
    before = {name: t.clone() for name, t in recorder.state_dict()["tensors"].items()}
    good = {"logits": x, "labels": y, "indices": torch.tensor([2, 3, 4]), "features": h}
    for change, error, message in (
        (
            {"indices": torch.tensor([2, 3, 2])},
            RuntimeError,
            "a sample once in an epoch, got 2 again in row 2",
        ),
        (
            {"indices": torch.tensor([2, 3, 5])},
            RuntimeError,
            "a sample once in an epoch, got 5 again in row 2",
        ),
        (
            {"indices": torch.tensor([2, 3, 10])},
            RuntimeError,
            r"indices must lie in \[0, 10\), got 10 in row 2",
        ),
        ({"indices": torch.tensor([-1, 3, 4])}, RuntimeError, "got -1 in row 0"),
        ({"indices": torch.tensor([2.0, 3, 4])}, TypeError, "indices must be integers"),
        ({"indices": torch.tensor([2, 3])}, ValueError, r"indices must have shape \(3,\)"),
        ({"labels": torch.tensor([0, 4, 1])}, RuntimeError, r"labels must lie in \[0, 4\), got 4 in row 1"),
        ({"labels": torch.tensor([0, -1, 1])}, RuntimeError, "got -1 in row 1"),
        ({"labels": [0, 1, 2]}, TypeError, "labels must be a torch tensor"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"labels must have shape \(3,\)"),
        ({"logits": torch.zeros(3, 5)}, ValueError, "logits must have 4 classes, got 5"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must have shape \(rows, classes\)"),
        ({"logits": torch.zeros(3, 4).int()}, TypeError, "logits must be float16"),
        (
            {"logits": torch.zeros(3, 4, device="meta")},
            ValueError,
            "logits must be on the recorder's device, cpu",
        ),
        ({"features": None}, ValueError, "features must be given"),
        ({"features": torch.zeros(2, 2)}, ValueError, r"features must have shape \(3, d\)"),
    ):
        with pytest.raises(error, match=message):
            recorder.update(**{**good, **change})
        for name, tensor in recorder.state_dict()["tensors"].items():
            assert torch.equal(tensor, before[name]), (change, name)
    with pytest.raises(ValueError, match="not enough for forgetting, grand, tdds"):
        recorder.update_probability(torch.ones(1), torch.tensor([2]))
    only = Recorder(3)
    for p in (1.5, -0.1):
        with pytest.raises(ValueError, match="must lie in"):
            only.update_probability(torch.tensor([p]), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least one batch, got none"):
        only.end_epoch()


def test_rows_that_a_gpu_leaves_out_change_nothing(monkeypatch):
    """What `claim_` does there, done on the CPU: every third row of a batch has no sample."""
    logits, labels, features = training(12, 9, 5)
    marks = ops.claim_

    def left_out(seen, rejected, indices, *others):
        used = torch.arange(len(indices)) % 3 != 0
        marks(seen, rejected, indices[used], None, 0)
        rejected += int((~used).sum())
        return torch.where(used, indices, -1)

    monkeypatch.setattr(ops, "claim_", left_out)
    recorder, rows = Recorder(9, DEFAULTS, classes=5), torch.arange(9)
    for t in range(12):
        recorder.update(logits[t], labels, rows, features[t])
        with pytest.raises(
            ValueError, match=f"epoch {t + 1}: 3 rows were left out.*; 3 samples were not seen"
        ):
            recorder.end_epoch()
    used = rows % 3 != 0
    monkeypatch.undo()
    alone = record(
        Recorder(6, DEFAULTS, classes=5), logits[:, used], labels[used], features[:, used]
    ).scores()
    for name, values in recorder.scores().items():
        assert values[~used].isnan().all()
        torch.testing.assert_close(values[used], alone[name], rtol=1e-12, atol=0)


@pytest.mark.cuda
def test_rows_in_error_are_left_out_on_a_gpu_and_counted_at_the_end():
    logits, labels, _ = training(1, 6, 4)
    recorder = Recorder(6, ("el2n",), device="cuda")
    rows, y = torch.tensor([0, 9, 2, 0]), labels[[0, 1, 2, 0]]
    y[2] = 7
    recorder.update(logits[0, [0, 1, 2, 0]].cuda(), y, rows)
    with pytest.raises(ValueError, match="3 rows were left out"):
        recorder.end_epoch()
    scores = recorder.scores()["el2n"]
    assert scores.isnan().tolist() == [False] + [True] * 5
    assert_close(scores[:1], dump.el2n(logits.numpy(), labels.numpy())[0, :1])


@pytest.mark.cuda
def test_recording_does_not_wait_for_the_gpu():
    logits, labels, features = training(12, 60, 11, dtype=torch.float32)
    recorder = Recorder(60, DEFAULTS, classes=11, device="cuda")
    logits, labels, features, rows = logits.cuda(), labels.cuda(), features.cuda(), torch.arange(60).cuda()
    recorder.update(logits[0], labels, rows, features[0])
    recorder.end_epoch()
    sequences, losses = Recorder(60, ("loss", "du"), device="cuda"), torch.rand(60, device="cuda")
    sequences.update_losses(losses, rows)
    sequences.end_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder.update(logits[1], labels, rows, features[1])
        sequences.update_losses(losses, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_wrong_options():
    for make, error, message in (
        (lambda: DynamicUncertainty(window=1), ValueError, "window must be at least 2, got 1"),
        (lambda: DynamicUncertainty(ddof=2), ValueError, "ddof must be 0 or 1, got 2"),
        (lambda: DynamicUncertainty(omitted=-1), ValueError, "omitted must be at least 0"),
        (lambda: DynamicUncertainty(window=2.5), TypeError, "window must be a whole number"),
        (
            lambda: DynamicUncertainty(forward="test"),
            ValueError,
            "forward must be one of training, evaluation",
        ),
        (lambda: Dual(trajectory=9), ValueError, "trajectory must be at least the 10"),
        (lambda: Dual(trajectory=30.0), TypeError, "trajectory must be a whole number or None"),
        (lambda: Tdds(window=2), ValueError, "window must be at least 3"),
        (lambda: Tdds(beta=0.0), ValueError, r"beta must be in \(0, 1\]"),
        (lambda: Tdds(epsilon=0.0), ValueError, r"epsilon must be in \[1e-30, 1\)"),
        (lambda: Tdds(dtype="int8"), ValueError, "dtype must be one of float16"),
        (lambda: Tdds(trajectory=9), ValueError, "trajectory must be at least the 10"),
        (lambda: El2n(epochs=(0,)), ValueError, "epochs must be one epoch or more, counted from 1"),
        (lambda: El2n(epochs=()), ValueError, "epochs must be one epoch or more"),
        (lambda: Grand(epochs=3), TypeError, "epochs must be a tuple"),
        (lambda: Loss("first"), ValueError, "of must be one of mean, last, got 'first'"),
        (lambda: Recorder(0), ValueError, "samples must be at least 1"),
        (lambda: Recorder(3, ("other",)), ValueError, "scores must be of du, .*got 'other'"),
        (lambda: Recorder(3, ()), ValueError, "scores must name at least one"),
        (lambda: Recorder(3, {"du": 3}), TypeError, "scores must be options by name"),
        (lambda: Recorder(3, ("tdds",)), ValueError, "classes must be given for tdds"),
        (lambda: Recorder(3, forward="both"), ValueError, "forward must be 'training' or"),
        (
            lambda: Recorder(3, ("du:paper",), forward="evaluation"),
            ValueError,
            "forward must be 'training', as",
        ),
        (lambda: Recorder(3).scores("tdds"), ValueError, "names must be of du, got 'tdds'"),
        (
            lambda: Recorder(3).scores(),
            ValueError,
            r"du needs 11 epochs \(a window of 10 epochs and 1 left out\)",
        ),
    ):
        with pytest.raises(error, match=message):
            make()
