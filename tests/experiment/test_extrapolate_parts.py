"""Parts of score extrapolation by themselves: what is kept, what is counted, what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from extrapolate_runs import KEEP, RECIPE, SUBSET, TOTAL, config, small_digits
from image_files import write_image, write_imagenet, write_places365

from prunefuse import models
from prunefuse.data import _large as large
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.extrapolate import ExtrapolateConfig, read_kept, run
from prunefuse.experiment.extrapolate.config import with_recipe
from prunefuse.experiment.extrapolate.kept import finite, keep_best, random_subset
from prunefuse.experiment.extrapolate.methods import Work, extrapolator
from prunefuse.training import Recipe


def test_equal_scores_do_not_favor_low_indices():
    scores = torch.zeros(1000)
    scores[900:] = 1
    kept = keep_best(scores, 200, seed=0)
    assert set(kept[:100].tolist()) == set(range(900, 1000))
    assert 300 < kept[100:].double().mean() < 600
    assert torch.equal(kept, keep_best(scores, 200, seed=0))
    assert not torch.equal(kept, keep_best(scores, 200, seed=1))


def test_samples_without_a_score_are_never_kept():
    scores = torch.tensor([torch.nan, 1.0, torch.inf, 0.5])
    assert keep_best(scores, 3, seed=0).tolist() == [2, 1, 3]
    with pytest.raises(ValueError, match="3"):
        keep_best(scores, 4, seed=0)


def test_balance_takes_as_many_of_a_class_as_there_are():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 50)
    scores = torch.arange(105.0)
    kept = keep_best(scores, 45, 0, labels)
    assert labels[kept].bincount().tolist() == [20, 5, 20]
    assert set(kept.tolist()) == {*range(30, 50), *range(50, 55), *range(85, 105)}
    subset = random_subset(105, 45, 0, "x", labels)
    assert labels[subset].bincount().tolist() == [20, 5, 20]
    assert subset.tolist() == sorted(set(subset.tolist()))


def test_a_random_subset_is_another_for_every_seed_and_purpose():
    subsets = {tuple(random_subset(50, 10, seed, purpose).tolist()) for seed in (0, 1) for purpose in "ab"}
    assert len(subsets) == 4


def test_samples_never_learned_are_scored_above_all_others():
    scores = torch.tensor([0.0, torch.inf, 3.0, torch.nan])
    assert finite(scores)[:3].tolist() == [0, 4, 3]
    assert finite(torch.tensor([torch.inf, torch.inf])).tolist() == [1, 1]


def lines(out, step):
    return {
        line["phase"]: line for line in json.loads((out / "seed0" / step / "done.json").read_text())["spent"]
    }


def flops_of_mlp():
    model = models.build("mlp", 10, 1, image_size=(8, 8))
    return 2 * sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def test_the_ledger_adds_up_to_the_formula(tmp_path, monkeypatch):
    small_digits(monkeypatch)
    out = run(
        config(tmp_path / "run", by=("knn", "direct", "ridge", "random"), compare=("full", "random")),
        quiet=True,
    )
    f, epochs = flops_of_mlp(), RECIPE.epochs
    width = json.loads((out / "seed0/embeddings/done.json").read_text())["features"]
    final = 3 * epochs * KEEP * f
    subset, passes = 3 * epochs * SUBSET * f, TOTAL * f
    assert lines(out, "subset")["train_subset"]["flops"] == subset
    # Held out to judge: 6 of 60; of the other 54 then 11 to choose k (10 or 20, as 43 are left) and temperature (3).
    # Without a part to judge, 12 of 60 choose. Each time what was chosen is fitted again, and asked.
    tried = 2 * 3
    pairs = tried * 11 * 43 + 6 * 54 + tried * 12 * 48 + (TOTAL - 60) * 60
    search = 2 * pairs * (width + 1)
    assert lines(out, "by-knn")["neighbors"]["flops"] == search
    # Five penalties and the chosen one, judged and used: the normal equations, and asking.
    solve = [2 * n * width**2 + width**3 / 3 for n in (*[43] * 5, 54, *[48] * 5, 60)]
    ask = 2 * width * (5 * 11 + 6 + 5 * 12 + TOTAL - 60)
    assert lines(out, "by-ridge")["extrapolate"]["flops"] == pytest.approx(sum(solve) + ask)
    expected = {
        "by-knn": subset + passes + search + final,
        "by-direct": subset + passes + final,
        "by-ridge": subset + passes + sum(solve) + ask + final,
        "by-random": subset + final,
        "full": 3 * epochs * TOTAL * f + final,
        "random": final,
    }
    table = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert {row[0]: float(row[4]) for row in table} == pytest.approx(expected)
    ledger = json.loads((out / "ledger.json").read_text())
    assert "3*E*n*F(F_s)" in ledger["formula"]
    for arm, kept, seconds in ((row[0], row[2], float(row[5])) for row in table):
        steps = {"by-knn": ("subset", "embeddings"), "full": ("full",), "random": ()}.get(arm)
        if steps is not None:
            paid = {*steps, arm, f"{arm}/keep-{kept}"}
            own = [e for e in ledger["entries"] if e["step"] in paid and e["phase"] != "evaluate"]
            assert sum(e["seconds"] for e in own) == pytest.approx(seconds)
    assert lines(out, "full")["evaluate"]["flops"] == 100 * f
    # What is told of comparisons that are not run is what they would be.
    planned = json.loads((out / "config.json").read_text())["planned"][str(KEEP)]
    assert sum(planned["full"].values()) == expected["full"]
    assert sum(planned["random"].values()) == expected["random"]


def test_an_mlp_is_charged_for_the_epochs_it_took():
    embeddings = torch.randn(300, 5)
    scores = torch.full((300,), torch.nan)
    scores[:200] = torch.randn(200)
    work = Work()
    made = extrapolator("mlp", 200, torch.zeros(300, dtype=torch.int64), 0, work)
    made.fit(embeddings, scores)
    weights = 5 * 128 + 128
    per_epoch = 2 * weights * (3 * 180 + 20)  # a tenth is held out to stop early
    assert work.products % per_epoch == 0
    assert 2 <= work.products / per_epoch <= 200
    before = work.products
    made.predict(embeddings)
    assert work.products - before == 2 * weights * 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "mnist"}, "data must be one of digits"),
        ({"by": ("faith",)}, "by must be any of knn, gnn, mlp, ridge, direct, random"),
        ({"by": ()}, "by must be any of"),
        ({"by": ("knn", "knn")}, "by must be any of .* each once"),
        ({"compare": ("dense",)}, "compare must be any of full, random"),
        ({"score": "beauty"}, "score must be one of du"),
        ({"recorded": "never"}, "recorded must be one of training, evaluation"),
        ({"score": "grand"}, "recorded must be evaluation with the score grand"),
        ({"score": "du:paper", "recorded": "evaluation"}, "recorded: forward must be 'training'"),
        ({"subset": "0%"}, "subset must be more than 0%"),
        ({"keep": ("half",)}, "keep must be a number of samples"),
        ({"keep": ()}, "keep must be one or more sizes"),
        ({"prune_ratio": 1.0}, r"prune_ratio must be in \[0, 1\)"),
        ({"fuse": True}, "fuse must be left out with prune_ratio 0"),
        ({"criterion": "taste"}, "criterion must be one of"),
        ({"complement": "none"}, "complement must be one of keep"),
        ({"recipe": Recipe(epochs=0)}, r"recipe\.epochs must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seeds": (1, 1)}, "seeds must be one or more different numbers"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_value_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        ExtrapolateConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": "2%"}, "subset must be at least 10 samples"),
        ({"subset": "400"}, "subset 400 is more than the pool has"),
        ({"keep": ("400",)}, "keep 400 is more than the pool has"),
        ({"keep": ("20%", "60")}, "keep must be different sizes"),
        ({"score": "du"}, "epochs must be at least 11 for the score du, got 2"),
        (
            {"model": "resnet7"},
            "model torchvision:resnet7 does not work on 1x8x8 images: .*such as resnet.*got 'resnet7'",
        ),
        ({"model": "resnet18"}, "model torchvision:resnet18 does not work on 1x8x8 images"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    changes, message, tmp_path, monkeypatch
):
    small_digits(monkeypatch)
    with pytest.raises(ConfigError, match=f"^{message}"):
        run(config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_not_written_to(tmp_path, monkeypatch):
    small_digits(monkeypatch)
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="out must be a folder that does not exist yet"):
        run(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_torch_geometric_is_asked_for_before_any_work(tmp_path, monkeypatch):
    small_digits(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"by gnn needs torch-geometric.*prunefuse\[gnn\]"):
        run(config(tmp_path / "run", by=("gnn",)))


def test_a_configuration_survives_json():
    for made in (
        ExtrapolateConfig(by=("knn", "mlp"), keep=("10", "50%")),
        ExtrapolateConfig(recipe=Recipe(epochs=3)),
    ):
        assert ExtrapolateConfig.from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_the_recipe_is_that_of_the_data_with_what_is_given():
    assert with_recipe({}, {"epochs": 12}).training.batch_size == ExtrapolateConfig().training.batch_size
    assert ExtrapolateConfig(data="cifar10").training.epochs == 181
    with pytest.raises(ConfigError, match="lr must be a positive number"):
        with_recipe({}, {"lr": -1.0})


@pytest.mark.parametrize("name", ["imagenet", "places365"])
def test_images_on_disk_in_their_real_layout(name, tmp_path, monkeypatch):
    root = tmp_path / "images"
    if name == "imagenet":
        write_imagenet(root)
        for wnid in ("n01440764", "n01443537"):
            for i in range(3, 12):
                write_image(root / "train" / wnid / f"{wnid}_{i}.JPEG", 20 * i)
    else:
        write_places365(root, monkeypatch, samples=24)
    monkeypatch.setattr(large, "SIDE", 16)
    options = {"data": name, "root": str(root), "model": "resnet8", "subset": "50%", "keep": ("25%",)}
    out = run(config(tmp_path / "run", **options, keep_balanced=True), quiet=True)
    kept = read_kept(out / "seed0/by-knn/keep-6/kept.csv")
    found = json.loads((out / "seed0/by-knn/keep-6/done.json").read_text())
    assert len(kept) == 6
    assert (found["fewest_of_a_class"], found["most_of_a_class"]) == (3, 3)
