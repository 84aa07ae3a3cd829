"""Where strategies get the features that they compare: a module's output, or numbers that are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunefuse import models
from prunefuse.data import OwnLabels, load
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.experiment.run import run
from prunefuse.selection import k_center_greedy
from prunefuse.training import Recipe, features

IMAGES = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRUTH = [int(image.mean() > 0.5) for image in IMAGES]
RECIPE = Recipe(epochs=2, batch_size=4, lr=0.05, schedule="one-cycle")
GIVEN = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)


def learner(schedule=(6, 12), *, given=None, folder=None, **config):
    def factory():
        return models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8, 8))

    settings = {"strategy": "k_center", "recipe": RECIPE, **config}
    return ActiveLearning(
        factory,
        IMAGES,
        None,
        LoopConfig(schedule=schedule, **settings),
        oracle=lambda indices: [TRUTH[index] for index in indices],
        features=given,
        folder=folder,
    )


def test_given_features_are_compared_and_no_network_is_asked():
    loop = learner(given=GIVEN)
    first, second = loop
    expected = k_center_greedy(GIVEN, 6, list(first.picks))
    assert list(second.picks) == expected.tolist()
    scored = [cost.flops for cost in second.costs if cost.phase == "score_pool"]
    assert scored == [0.0]
    assert [line.flops for line in loop.planned if line.phase == "select"] == [2.0 * 5 * (6 + 6) * 80]


@pytest.mark.parametrize("selector", ["prunefuse", "dense"])
def test_a_file_gives_the_same_and_another_file_is_not_gone_on_with(tmp_path, selector):
    np.save(tmp_path / "embeddings.npy", GIVEN)
    settings = {"features_from": str(tmp_path / "embeddings.npy"), "selector": selector}
    loop = learner(**settings, folder=tmp_path / "mine")
    rounds = list(loop)
    assert [one.picks for one in rounds] == [one.picks for one in learner(given=GIVEN, selector=selector)]
    np.save(tmp_path / "embeddings.npy", GIVEN[::-1].copy())
    with pytest.raises(ValueError, match="features: its images had the hash"):
        learner((6, 12, 20), **settings, folder=tmp_path / "mine")


def test_a_module_gives_its_output():
    loop = learner()
    names = [
        name
        for name, module in loop._initial_selector().named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    layer = names[0]
    loop = learner(features_from=layer)
    iterator = iter(loop)
    first = next(iterator)
    selector = loop.selector
    seen = features(selector, IMAGES, module=layer)
    second = next(iterator)
    assert list(second.picks) == k_center_greedy(seen, 6, list(first.picks)).tolist()


@pytest.mark.parametrize("source", ["network", "given"])
def test_the_first_samples_are_chosen_by_features_without_labels(source):
    loop = learner(cold_start="k_center", strategy="margin", given=GIVEN if source == "given" else None)
    seen = torch.from_numpy(GIVEN) if source == "given" else features(loop._initial_selector(), IMAGES)
    first = next(iter(loop))
    assert list(first.picks) == k_center_greedy(seen, 6).tolist()
    assert {cost.phase for cost in first.costs} >= {"score_pool", "select"}
    assert [cost.labels for cost in first.costs if cost.phase == "select"] == [0]
    assert first.utilities is None


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        (
            GIVEN[:70],
            {},
            r"features must have a row for each of the 80 samples of the pool, got shape \(70, 5\)",
        ),
        (GIVEN[:, 0], {}, "features must have a row for each"),
        (GIVEN.astype(int), {}, "features must be float16, bfloat16, float32 or float64, got torch.int64"),
        (GIVEN, {"strategy": "margin"}, "features must be left out with margin after a random start"),
        (GIVEN, {"strategy": "badge"}, "features must be left out with badge"),
        (GIVEN, {"features_from": "layer"}, "features must be None with features_from='layer', got some"),
        (
            None,
            {"features_from": "nowhere"},
            "features_from must be a .npy file or a module of the selector, such as",
        ),
        (
            None,
            {"features_from": "no.npy"},
            "features_from: .*no.npy",
        ),
        (None, {"features_from": "x", "strategy": "margin"}, "features_from must be left out with margin"),
    ],
)
def test_features_that_do_not_fit_are_refused_before_any_work(tmp_path, monkeypatch, given, config, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=said):
        learner(given=given, **config)


def test_a_file_that_is_no_array_is_named(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"not an array")
    with pytest.raises(
        ValueError, match=r"features_from: features must be a \.npy file of numbers, got .*x\.npy"
    ):
        learner(features_from=str(tmp_path / "x.npy"))


def test_a_run_takes_them_from_a_file(tmp_path):
    pool = load("digits").pool
    np.save(tmp_path / "pixels.npy", np.stack([pool[i][0].flatten().numpy() for i in range(len(pool))]))
    settings = {
        "model": "mlp",
        "schedule": ("20", "30"),
        "seeds": (0,),
        "threads": 1,
        "jobs": 1,
        "device": "cpu",
    }
    config = RunConfig(
        **settings,
        strategy="k_center",
        cold_start="k_center",
        features_from=str(tmp_path / "pixels.npy"),
        recipe=RECIPE,
        out=str(tmp_path / "run"),
    )
    out = run(config, quiet=True)
    lines = (out / "prunefuse" / "seed0" / "picks.csv").read_text().splitlines()[1:]
    expected = k_center_greedy(np.load(tmp_path / "pixels.npy"), 20).tolist()
    assert [int(line.split(",")[2]) for line in lines[:20]] == expected
    assert OwnLabels(pool)(expected) == [int(line.split(",")[4]) for line in lines[:20]]
    with pytest.raises(ConfigError, match=r"features_from: .*missing\.npy"):
        run(RunConfig(**settings, strategy="k_center", features_from="missing.npy"), quiet=True)
