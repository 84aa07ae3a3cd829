"""A whole run of score extrapolation, on a part of the digits: every file, and every number against the library's."""

from __future__ import annotations

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from extrapolate_runs import KEEP, RECIPE, SUBSET, TOTAL, config, small_digits
from safetensors.torch import load_file

from prunefuse import extrapolation, models
from prunefuse._seeds import derive
from prunefuse.data._batches import Labeled
from prunefuse.dynamics import Recorder
from prunefuse.experiment.extrapolate import read_kept, resume, run
from prunefuse.experiment.extrapolate.kept import COLUMNS
from prunefuse.experiment.extrapolate.record import read
from prunefuse.experiment.report import overview, report
from prunefuse.experiment.report.extrapolation import METRICS, render
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, load_pruned
from prunefuse.training import Recipe, evaluate, features, train

EXTRAPOLATORS = ("knn", "mlp", "ridge", "direct", "random")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores_of(path):
    scores = torch.full((TOTAL,), torch.nan, dtype=torch.float64)
    for row in rows(path):
        scores[int(row["index"])] = float(row["score"])
    return scores


def done(path):
    return json.loads((path / "done.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data():
    with pytest.MonkeyPatch.context() as patch:
        yield small_digits(patch)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "all"
    options = {"by": EXTRAPOLATORS, "keep": ("20%", "75"), "compare": ("full", "random")}
    assert run(config(out, **options), command="prunefuse extrapolate --x", quiet=True) == out
    return out


@pytest.fixture(scope="module")
def network(finished):
    """F_s as it was trained."""
    model = models.build("mlp", 10, 1, image_size=(8, 8))
    model.load_state_dict(load_file(finished / "seed0/subset/network.safetensors"))
    return model


def test_the_folder_has_every_file_and_no_other(finished):
    expected = {"config.json", "manifest.json", "ledger.json", "metrics.csv", "report.html"}
    steps = {
        "subset": ["scores.csv", "network.safetensors"],
        "full": ["scores.csv", "network.safetensors"],
        "embeddings": ["embeddings.npy"],
        "answers": ["answers.safetensors"],
    }
    steps |= {f"by-{name}": ["scores.csv"] for name in EXTRAPOLATORS}
    for arm in [*(f"by-{name}" for name in EXTRAPOLATORS), "full", "random"]:
        steps |= {f"{arm}/keep-{keep}": ["kept.csv", "final.safetensors"] for keep in (KEEP, 75)}
    for step, names in steps.items():
        expected |= {f"seed0/{step}/{name}" for name in [*names, "done.json"]}
    assert {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()} == expected


def test_the_subset_is_random_and_scored_as_it_was_trained(finished, data):
    table = rows(finished / "seed0/subset/scores.csv")
    assert len(table) == SUBSET
    assert {row["source"] for row in table} == {"known"}
    chosen = torch.tensor([int(row["index"]) for row in table])
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    recorder = Recorder(SUBSET, ("el2n",))
    torch.manual_seed(derive(0, "dense"))
    model = models.build("mlp", 10, 1, image_size=(8, 8))
    train(
        model,
        Labeled(data.train, chosen, data.pool.labels[chosen]),
        RECIPE,
        seed=derive(0, "train", "train_subset"),
        on_batch=recorder.update,
        on_epoch=lambda _: recorder.end_epoch(),
    )
    assert [float(row["score"]) for row in table] == recorder.scores()["el2n"].tolist()
    weights = load_file(finished / "seed0/subset/network.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert done(finished / "seed0/subset")["accuracy"] == evaluate(model, data.test)


def test_all_samples_are_embedded_without_augmentation(finished, data, network):
    stored = np.load(finished / "seed0/embeddings/embeddings.npy")
    assert stored.shape[0] == TOTAL
    assert torch.equal(torch.from_numpy(stored), features(network, data.pool))


def test_extrapolated_scores_are_those_of_the_library(finished):
    embeddings = torch.from_numpy(np.load(finished / "seed0/embeddings/embeddings.npy"))
    known = scores_of(finished / "seed0/subset/scores.csv")
    found = scores_of(finished / "seed0/by-knn/scores.csv")
    options = done(finished / "seed0/by-knn")["options"]
    predicted = extrapolation.KNN(**options).fit(embeddings, known).predict(embeddings)
    rest = known.isnan()
    assert torch.equal(found[~rest], known[~rest])
    torch.testing.assert_close(found[rest], predicted[rest])


def test_direct_scores_are_in_the_order_of_the_networks_errors(finished, data, network):
    probabilities = network.eval()(data.pool.read(torch.arange(TOTAL))).softmax(1)
    el2n = (probabilities - torch.nn.functional.one_hot(data.pool.labels, 10)).norm(dim=1)
    found = scores_of(finished / "seed0/by-direct/scores.csv")
    rest = scores_of(finished / "seed0/subset/scores.csv").isnan()
    compared = extrapolation.agreement(found[rest], el2n[rest].double())
    assert compared.spearman == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("arm", [*(f"by-{name}" for name in EXTRAPOLATORS), "full"])
def test_the_best_are_kept(finished, arm):
    table = rows(finished / "seed0" / arm / f"keep-{KEEP}" / "kept.csv")
    assert tuple(table[0]) == COLUMNS
    kept = [int(row["index"]) for row in table]
    scores = scores_of(finished / "seed0" / arm / "scores.csv")
    assert len(set(kept)) == KEEP
    assert [float(row["score"]) for row in table] == scores[kept].tolist()
    assert scores[kept].tolist() == sorted(scores.tolist(), reverse=True)[:KEEP]
    scored = {row["index"] for row in rows(finished / "seed0/subset/scores.csv")}
    if arm != "full":
        assert all((row["source"] == "known") == (row["index"] in scored) for row in table)
        assert {row["source"] for row in table} == {"known", "extrapolated"}
    assert read_kept(finished / "seed0" / arm / f"keep-{KEEP}" / "kept.csv").tolist() == kept


def test_random_pruning_has_no_scores(finished):
    table = rows(finished / f"seed0/random/keep-{KEEP}/kept.csv")
    assert {(row["score"], row["source"]) for row in table} == {("", "none")}
    assert len({row["index"] for row in table}) == KEEP


def test_the_final_network_is_trained_on_the_kept_alone(finished, data):
    place = finished / f"seed0/by-knn/keep-{KEEP}"
    kept = read_kept(place / "kept.csv").sort().values
    torch.manual_seed(derive(0, "dense"))
    model = models.build("mlp", 10, 1, image_size=(8, 8))
    seed = derive(0, "train", "train_final")
    train(model, Labeled(data.train, kept, data.pool.labels[kept]), RECIPE, seed=seed)
    weights = load_file(place / "final.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert done(place)["accuracy"] == evaluate(model, data.test)


def test_agreement_is_told_on_the_unscored_where_full_scores_are_known(finished, data, tmp_path):
    full, rest = (
        scores_of(finished / "seed0/full/scores.csv"),
        scores_of(finished / "seed0/subset/scores.csv").isnan(),
    )
    for name in EXTRAPOLATORS:
        found = done(finished / f"seed0/by-{name}")
        predicted = scores_of(finished / f"seed0/by-{name}/scores.csv")
        for keep in (KEEP, 75):
            told = found["unscored"][str(keep)]
            expected = extrapolation.agreement(predicted[rest], full[rest], keep / TOTAL)
            assert (told["pearson"], told["spearman"]) == (expected.pearson, expected.spearman)
            assert (told["overlap"], told["samples"]) == (expected.overlap, TOTAL - SUBSET)
        assert found["held_out"]["samples"] == 6
    alone = run(config(tmp_path / "alone"), quiet=True)
    found = done(alone / "seed0/by-knn")
    assert found["unscored"] == {}
    assert found["held_out"]["samples"] == 6
    # The subset's scores are the same, so nothing of full scores has a say in what is extrapolated.
    for name in ("scores.csv", f"keep-{KEEP}/kept.csv"):
        assert (alone / "seed0/by-knn" / name).read_text() == (finished / "seed0/by-knn" / name).read_text()
    text = overview(alone)
    assert "unscored" not in text
    assert "full, not run" in text


def test_the_report_and_the_tables_have_every_arm(finished):
    html = (finished / "report.html").read_text(encoding="utf-8")
    for label in ("extrapolated by knn", "scored by F_s directly", "full scores", "random pruning"):
        assert label in html
    assert "not run" not in html
    assert "prunefuse extrapolate --x" in html
    assert html.count("<svg") == 2 * 2  # FLOPs and seconds, for two sizes
    for what in ("selection FLOPs", "whole FLOPs"):
        assert re.search(rf"{what}</span>\s*<b>[\d.]+× (less|more)", html)
    metrics = rows(finished / "metrics.csv")
    assert tuple(metrics[0]) == METRICS
    assert len(metrics) == (len(EXTRAPOLATORS) + 2) * 2
    before = (finished / "metrics.csv").read_text()
    assert report([finished]) == finished / "report.html"
    assert (finished / "metrics.csv").read_text() == before


def test_names_given_by_a_user_are_text_in_the_report(finished):
    record = read(finished)
    facts = json.loads(json.dumps(record.config))
    facts["command"] = facts["data"]["name"] = facts["machine"]["device_name"] = "<script>alert(1)</script>"
    facts["config"]["model"] = facts["recipe"]["schedule"] = "<script>alert(1)</script>"
    html = render(dataclasses.replace(record, config=facts))
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_a_pruned_network_scores_and_is_fused_into_the_final_one(data, tmp_path):
    still = Recipe(epochs=2, batch_size=32, lr=1e-30, weight_decay=0.0, schedule="one-cycle")
    out = run(config(tmp_path / "run", prune_ratio=0.5, fuse=True, recipe=still), quiet=True)
    plan = PruningPlan.load(out / "seed0/subset/plan.json")
    assert plan.params[1] < plan.params[0]
    weights = load_file(out / "seed0/subset/network.safetensors")

    def make():
        return models.build("mlp", 10, 1, image_size=(8, 8))

    small = load_pruned(make, plan, weights)
    torch.manual_seed(derive(0, "dense"))
    expected = fuse_(make(), small, plan, "keep")
    final = load_file(out / f"seed0/by-knn/keep-{KEEP}/final.safetensors")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(final[name], value, atol=1e-20, rtol=0)
    lines = {line["phase"]: line for line in done(out / "seed0/subset")["spent"]}
    small_flops = lines["train_subset"]["flops"]
    assert small_flops == 3 * 2 * SUBSET * sum(layer.flops_after for layer in plan.layers)
    assert "fuse" in {line["phase"] for line in done(out / f"seed0/by-knn/keep-{KEEP}")["spent"]}


def test_the_graph_network_is_one_of_them(data, tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric")
    from prunefuse.experiment.extrapolate import methods

    few = methods.GNN
    monkeypatch.setattr(methods, "GNN", lambda **options: few(**options, epochs=5))
    out = run(config(tmp_path / "run", by=("gnn",)), quiet=True)
    lines = {line["phase"]: line for line in done(out / "seed0/by-gnn")["spent"]}
    assert lines["neighbors"]["flops"] == 2 * TOTAL * TOTAL * (embedded(out) + 1)
    # Of a forward pass: dense products, and 10 neighbors and the sample itself for every feature that goes along an edge.
    width = embedded(out) + 10
    dense = 2 * TOTAL * (width * 512 + 512 * 256 + 256)
    edges = 2 * TOTAL * 11 * (512 + 256 + 1)
    # Each of two fits has 5 epochs of a training pass and one to judge, and then a pass to predict. Backward asks for no
    # gradient of the input or of the edges.
    backward = 2 * dense + edges - 2 * TOTAL * width * 512
    assert lines["extrapolate"]["flops"] == pytest.approx(
        2 * (5 * (2 * (dense + edges) + backward) + dense + edges)
    )


def embedded(out):
    return done(out / "seed0/embeddings")["features"]


def test_scores_of_evaluation_passes_are_recorded_and_paid_for(data, tmp_path):
    out = run(config(tmp_path / "run", score="grand", recorded="evaluation", by=("ridge",)), quiet=True)
    lines = {line["phase"]: line for line in done(out / "seed0/subset")["spent"]}
    assert lines["record"]["flops"] == lines["train_subset"]["flops"] / 3
    assert bool(scores_of(out / "seed0/by-ridge/scores.csv").isfinite().all())


def test_seeds_are_runs_of_their_own(data, tmp_path):
    out = run(config(tmp_path / "run", seeds=(0, 1), by=("random",)), quiet=True)
    first, second = (rows(out / f"seed{seed}/subset/scores.csv") for seed in (0, 1))
    assert {row["index"] for row in first} != {row["index"] for row in second}
    assert not (out / "seed0/embeddings").exists()  # random scores need none
    assert {row["seed"] for row in rows(out / "metrics.csv")} == {"0", "1"}


@pytest.mark.parametrize("balanced", [False, True])
def test_classes_are_balanced_where_that_is_asked_for(data, tmp_path, balanced):
    out = run(config(tmp_path / "run", subset_balanced=balanced, keep_balanced=balanced), quiet=True)
    for path in ("subset/scores.csv", f"by-knn/keep-{KEEP}/kept.csv"):
        chosen = [int(row["index"]) for row in rows(out / "seed0" / path)]
        counts = data.pool.labels[chosen].bincount(minlength=10)
        assert (int(counts.max() - counts.min()) <= 1) is balanced
    found = done(out / f"seed0/by-knn/keep-{KEEP}")
    assert (found["fewest_of_a_class"], found["most_of_a_class"]) == (int(counts.min()), int(counts.max()))


def test_resuming_a_finished_run_changes_nothing(finished, data):
    before = {path: path.stat().st_mtime_ns for path in (finished / "seed0").rglob("*") if path.is_file()}
    config_before = (finished / "config.json").read_text()
    resume(finished, quiet=True)
    assert before == {
        path: path.stat().st_mtime_ns for path in (finished / "seed0").rglob("*") if path.is_file()
    }
    assert (finished / "config.json").read_text() == config_before
