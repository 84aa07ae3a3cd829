"""From where a run starts: labels that one has, what samples are called, and the weights of each round's selector."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from prunefuse import data, models
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.labeled import read_excluded, read_labeled
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.experiment.run import resume, run
from prunefuse.training import Recipe, shrink_and_perturb_

IMAGES = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRUTH = [int(image.mean() > 0.5) for image in IMAGES]
RECIPE = Recipe(epochs=2, batch_size=4, lr=0.05, schedule="one-cycle")


def factory():
    return models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8, 8))


def learner(schedule=(6, 12, 20), *, test=None, oracle=None, config=None, **options):
    settings = {"strategy": "margin", "recipe": RECIPE, **(config or {})}
    oracle = oracle or (lambda indices: [TRUTH[index] for index in indices])
    return ActiveLearning(
        factory, IMAGES, test, LoopConfig(schedule=schedule, **settings), oracle=oracle, **options
    )


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_digits(**changes):
    settings = {"model": "mlp", "schedule": ("20", "30", "45"), "seeds": (0,), "threads": 1, "jobs": 1}
    recipe = Recipe(epochs=1, batch_size=32, lr=0.05, schedule="one-cycle")
    return RunConfig(**(settings | {"device": "cpu", "recipe": recipe, "baselines": ()} | changes))


# --- what samples and classes are called


def test_people_are_asked_by_the_names_of_samples_and_picks_have_them(tmp_path):
    ids = [f"image {i}" for i in range(80)]
    loop = learner(oracle="people", ids=ids, classes=["dark", "light"], folder=tmp_path / "mine")
    while (asked := loop.ask()).indices:
        assert asked.ids == tuple(ids[index] for index in asked.indices)
        loop.tell([TRUTH[index] for index in asked.indices])
    assert loop.ask().ids == ()
    picks = rows(tmp_path / "mine" / "picks.csv")
    assert len(picks) == 20
    for row in picks:
        index = int(row["index"])
        assert row["id"] == ids[index]
        assert row["label"] == str(TRUTH[index])
        assert row["class"] == ["dark", "light"][TRUTH[index]]


def test_samples_without_names_have_none(tmp_path):
    loop = learner(oracle="people", folder=tmp_path / "mine")
    assert loop.ask().ids is None
    [*_] = learner(folder=tmp_path / "other")
    assert all(
        (row["id"], row["class"]) == (row["index"], row["label"])
        for row in rows(tmp_path / "other/picks.csv")
    )


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ({"ids": ["a"]}, ValueError, "ids must have one for each of 80 samples, got 1"),
        ({"ids": "a" * 80}, TypeError, "ids must be a sequence of strings, got str"),
        ({"ids": list(range(80))}, TypeError, "ids must be strings, got 0 for 0"),
        ({"classes": ["a", "b", "c"]}, ValueError, "classes must have one for each of 2 classes, got 3"),
    ],
)
def test_names_are_one_for_each(names, error, said):
    with pytest.raises(error, match=said):
        learner(**names)


def images_by_class(root, count=12):
    from PIL import Image

    for part, many in (("train", count), ("test", 2)):
        for label, name in enumerate(("cat", "dög")):
            place = root / part / name
            place.mkdir(parents=True)
            for i in range(many):
                Image.new("RGB", (8, 8), (40 * label + 5 * i,) * 3).save(place / f"{i}.png")


def test_a_run_says_which_files_were_picked_and_what_their_classes_are(tmp_path):
    images_by_class(tmp_path / "images")
    out = tmp_path / "run"
    run(of_digits(data=f"folder:{tmp_path / 'images'}", schedule=("4", "8"), out=str(out)), quiet=True)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["classes"] == ["cat", "dög"]
    picks = rows(out / "prunefuse" / "seed0" / "picks.csv")
    assert len(picks) == 8
    for row in picks:
        assert (tmp_path / "images" / "train" / row["class"]) in [
            *map(type(tmp_path), [row["id"].rpartition("/")[0]])
        ]
        assert row["label"] == str(["cat", "dög"].index(row["class"]))


@pytest.mark.parametrize("name", ["digits"])
def test_bundled_data_say_which_row_a_sample_is(name):
    from sklearn.datasets import load_digits

    found = data.load(name)
    assert found.classes == tuple("0123456789")
    bundle = load_digits()
    for index in (0, 700, 1436):
        row = int(found.ids[index])
        assert torch.equal(found.pool[index][0][0], torch.from_numpy(bundle.images[row]).float() / 16)


# --- labels that one has, on the command line


def listed(path, header, *lines):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(path)


def test_a_run_starts_from_the_labels_of_a_file(tmp_path):
    lines = [f"{index},{index % 10}" for index in range(25)]
    file = listed(tmp_path / "have.csv", "index,label", *lines, "30,", "31,")
    out = tmp_path / "run"
    run(of_digits(labeled=file, out=str(out), baselines=("random",)), quiet=True)
    assert json.loads((out / "config.json").read_text())["schedule"] == [25, 30, 45]
    for arm in ("prunefuse", "random"):
        picks = rows(out / arm / "seed0" / "picks.csv")
        first = [(row["index"], row["label"]) for row in picks if row["round"] == "0"]
        assert first == [(str(index), str(index % 10)) for index in range(25)]
        assert len(picks) == 45
    # What another run picked is such a file, with labels by index.
    other = tmp_path / "other"
    run(
        of_digits(labeled=str(out / "prunefuse/seed0/picks.csv"), schedule=("30", "60"), out=str(other)),
        quiet=True,
    )
    again = rows(other / "prunefuse" / "seed0" / "picks.csv")[:45]
    assert [row["index"] for row in again] == [
        row["index"] for row in rows(out / "prunefuse/seed0/picks.csv")
    ]


@pytest.mark.parametrize("form", ["as the run names it", "from the data", "from the file", "absolute"])
def test_paths_are_found_from_wherever_they_start(tmp_path, monkeypatch, form):
    images_by_class(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "lists" / "have.csv"
    file.parent.mkdir()
    start = {
        "as the run names it": "images/train/",
        "from the data": "train/",
        "from the file": "../images/train/",
        "absolute": f"{tmp_path}/images/train/",
    }[form]
    listed(file, "path;label", f"{start}cat/3.png;cat", f"{start}dög/1.png;dög", f"{start}cat/0.png;1")
    out = tmp_path / "run"
    run(of_digits(data="folder:images", labeled=str(file), schedule=("2", "6"), out=str(out)), quiet=True)
    first = [row for row in rows(out / "prunefuse/seed0/picks.csv") if row["round"] == "0"]
    assert [(row["id"], row["class"]) for row in first] == [
        ("images/train/cat/3.png", "cat"),
        ("images/train/dög/1.png", "dög"),
        ("images/train/cat/0.png", "dög"),  # what the file says, not the folder
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_spreadsheets_are_read(tmp_path, encoding):
    file = tmp_path / "have.csv"
    file.write_text("Index;Label\r\n" + "".join(f"{i};{i % 10}\r\n" for i in range(25)), encoding=encoding)
    assert read_labeled(str(file), data.load("digits")) == {i: i % 10 for i in range(25)}


def test_a_file_may_be_indices_alone(tmp_path):
    file = listed(tmp_path / "have.txt", "5", *map(str, range(6, 30)))
    digits = data.load("digits")
    assert list(read_labeled(file, digits)) == list(range(5, 30))
    assert read_excluded(file, digits) == list(range(5, 30))


def test_without_a_column_of_labels_they_are_those_of_the_data(tmp_path):
    file = listed(tmp_path / "have.csv", "index", *map(str, range(5, 30)))
    out = tmp_path / "run"
    run(of_digits(labeled=file, out=str(out)), quiet=True)
    own = data.OwnLabels(data.load("digits").pool)(range(5, 30))
    picks = rows(out / "prunefuse" / "seed0" / "picks.csv")[:25]
    assert [int(row["label"]) for row in picks] == own


@pytest.mark.parametrize(
    ("header", "lines", "said"),
    [
        ("file,label", ["0,1"], "must have a column path or index, got file, label"),
        ("index,label", ["0,1", "5000,1"], "line 3: index must be of a sample of the pool, got '5000'"),
        ("index,label", ["-1,1"], "line 2: index must be of a sample of the pool, got '-1'"),
        ("index,label", ["1.5,1"], "got '1.5'"),
        ("index,label", ["0,10"], "line 2: label must be one of 0, 1, 2, .*, got '10'"),
        ("index,label", ["0,1.0"], "got '1.0'"),
        ("index,label", ["0,1", "0,1"], "line 3: a sample must have one line, got '0' again"),
        ("index,label", ["0"], "line 2: fields must be 2, got 1"),
        ("index,label", ["0,"], "must have a sample with a label, got none"),
        ("index,label", ["7,1", "x,11"], "index must be of a sample of the pool, got 'x'"),
    ],
)
def test_every_wrong_line_is_named_before_anything_is_written(tmp_path, header, lines, said):
    file = listed(tmp_path / "have.csv", header, *lines)
    with pytest.raises(ConfigError, match=said):
        run(of_digits(labeled=file, out=str(tmp_path / "run")), quiet=True)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_there_do_not_go_with_a_first_size_or_a_schedule_below(tmp_path):
    with pytest.raises(ConfigError, match="initial must be left out with labeled"):
        of_digits(labeled="have.csv", initial="20")
    file = listed(tmp_path / "have.csv", "index", *map(str, range(45)))
    with pytest.raises(ConfigError, match="schedule must go beyond the 45 labels that there are"):
        run(of_digits(labeled=file, out=str(tmp_path / "run")), quiet=True)
    with pytest.raises(ConfigError, match=r"labeled: missing\.csv cannot be read"):
        run(of_digits(labeled="missing.csv", out=str(tmp_path / "run")), quiet=True)


def test_a_run_does_not_go_on_with_other_labels(tmp_path):
    file = tmp_path / "have.csv"
    listed(file, "index", *map(str, range(25)))
    out = tmp_path / "run"
    run(of_digits(labeled=str(file), out=str(out)), quiet=True)
    facts = json.loads((out / "config.json").read_text())
    assert facts["data"]["labeled"].startswith("25 samples with SHA-256 ")
    assert resume(out) == out


# --- the weights that a round's selector starts from


def weights_after(config, schedule=(6, 12, 20), **options):
    loop = learner(schedule, config=config, **options)
    rounds = list(loop)
    return loop, rounds


@pytest.mark.parametrize("selector", ["prunefuse", "dense"])
def test_a_selector_goes_on_from_the_round_before_or_starts_anew(selector):
    """With a learning rate of almost nothing, weights are what they start from."""
    still = Recipe(epochs=1, batch_size=4, lr=1e-12, weight_decay=0.0)
    moving = Recipe(epochs=2, batch_size=4, lr=0.1, weight_decay=0.0)
    found = {}
    for start in ("fresh", "continue", "shrink"):
        settings = {"selector": selector, "start": start, "noise": 0.0, "shrink_to": 0.5}
        loop, _ = weights_after({**settings, "recipe": moving}, (6, 12))
        trained = {name: value.clone() for name, value in loop.state.selector.items()}
        state = loop.state
        state.rounds, state.acquisitions = state.rounds[:2], state.acquisitions[:2]
        if selector == "dense" and start == "fresh":
            continue  # its last round trains no selector
        again = learner((6, 12, 20), config={**settings, "recipe": still}, state=state)
        list(again)
        found[start] = (
            trained,
            again.selector.state_dict() if selector == "prunefuse" else again.final.state_dict(),
        )
    for start, factor in (("continue", 1.0), ("shrink", 0.5)):
        before, after = found[start]
        for name, value in before.items():
            torch.testing.assert_close(after[name], value * factor, rtol=1e-5, atol=1e-6)


def test_starts_give_other_weights_and_the_same_again():
    final = {}
    for start in ("fresh", "continue", "shrink"):
        loop, _ = weights_after({"start": start})
        again, _ = weights_after({"start": start})
        final[start] = loop.final.state_dict()
        assert all(torch.equal(value, again.final.state_dict()[name]) for name, value in final[start].items())
    some = "features.0.weight" if "features.0.weight" in final["fresh"] else next(iter(final["fresh"]))
    assert not torch.equal(final["fresh"][some], final["continue"][some])
    assert not torch.equal(final["shrink"][some], final["continue"][some])


@pytest.mark.parametrize("start", ["continue", "shrink"])
@pytest.mark.parametrize("selector", ["prunefuse", "dense"])
@pytest.mark.parametrize("strategy", ["margin", "random"])
def test_a_loop_that_stops_between_rounds_goes_on_as_if_it_had_not(tmp_path, start, selector, strategy):
    config = {"start": start, "selector": selector, "strategy": strategy}
    whole, _ = weights_after(config)
    list(learner((6, 12), config=config, folder=tmp_path / "mine"))
    rest = learner((6, 12, 20), config=config, folder=tmp_path / "mine")
    list(rest)
    assert [one.picks for one in rest.state.rounds] == [one.picks for one in whole.state.rounds]
    for name, value in whole.final.state_dict().items():
        assert torch.equal(rest.final.state_dict()[name], value), name


def test_after_a_sync_the_selector_starts_from_what_it_is_cut_from():
    loop, rounds = weights_after({"start": "continue", "t_sync": 1})
    assert [one.labels for one in rounds] == [6, 12, 20]
    assert loop.plan is not None


def test_shrinking_leaves_buffers_and_changes_shared_parameters_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[1].running_mean.fill_(7.0)
    before = model[0].weight.detach().clone()
    shrink_and_perturb_(model, 0.5, 0.0)
    torch.testing.assert_close(model[0].weight.detach(), before * 0.5)
    assert model[1].running_mean.eq(7.0).all()
    big = torch.nn.Linear(200, 200)
    torch.nn.init.zeros_(big.weight)
    shrink_and_perturb_(big, 0.5, 0.25, torch.Generator().manual_seed(0))
    assert abs(float(big.weight.detach().std()) - 0.25) < 0.01


# --- a pool that grows


def grown(pool, schedule, folder=None, state=None, **config):
    settings = {"strategy": "margin", "recipe": RECIPE, "stop_when": ("kappa:1",), **config}
    return ActiveLearning(
        factory,
        IMAGES[:pool],
        None,
        LoopConfig(schedule=schedule, **settings),
        oracle=lambda indices: [TRUTH[index] for index in indices],
        folder=folder,
        state=state,
    )


@pytest.mark.parametrize("kept", ["folder", "state"])
def test_a_loop_goes_on_in_a_pool_that_has_grown_at_its_end(tmp_path, kept):
    place = tmp_path / "mine" if kept == "folder" else None
    before = grown(40, (6, 12, 18), place)
    first = list(before)
    after = grown(80, (6, 12, 18, 70), place, None if place else before.state)
    [last] = after
    assert [one.picks for one in after.state.rounds[:3]] == [one.picks for one in first]
    picked = [index for one in after.state.rounds for index in one.picks]
    assert len(set(picked)) == 70
    assert max(picked) >= 40
    assert "kappa" in last.signals


def test_a_pool_that_is_another_or_has_shrunk_is_refused(tmp_path):
    list(grown(40, (6, 12), tmp_path / "mine"))
    other = torch.cat((IMAGES[1:40], IMAGES[:41]))
    config = LoopConfig(schedule=(6, 12, 20), strategy="margin", recipe=RECIPE)
    with pytest.raises(ValueError, match="pool: its images had the hash"):
        ActiveLearning(factory, other, None, config, oracle="people", folder=tmp_path / "mine")
    with pytest.raises(ValueError, match="pool: its number of samples was 40"):
        grown(30, (6, 12, 20), tmp_path / "mine")


def test_a_folder_of_images_may_have_grown(tmp_path):
    """Its pool is another order of files, unless new ones come last: the loop says so instead of taking others for them."""
    images_by_class(tmp_path / "images", count=6)
    place = f"folder:{tmp_path / 'images'}"

    def loop(schedule):
        loaded = data.load(place)
        make = lambda: models.mlp(2, in_channels=loaded.input_shape[0], image_size=(8, 8), hidden=(4,))  # noqa: E731
        config = LoopConfig(schedule=schedule, recipe=RECIPE)
        return ActiveLearning(make, loaded.pool, None, config, folder=tmp_path / "mine")

    list(loop((3, 5)))
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / "dög" / "zz.png")
    assert [one.labels for one in loop((3, 5, 13))] == [13]
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / "cat" / "aa.png")
    with pytest.raises(ValueError, match="pool: its file names had the hash"):
        loop((3, 5, 13, 14))


# --- samples that are never picked, and parts of a large pool


@pytest.mark.parametrize("strategy", ["margin", "random", "k_center"])
@pytest.mark.parametrize("form", ["indices", "mask"])
def test_excluded_samples_are_never_picked(strategy, form):
    excluded = list(range(0, 80, 2))
    given = excluded if form == "indices" else torch.arange(80) % 2 == 0
    rounds = list(learner((6, 12, 40), config={"strategy": strategy}, exclude=given))
    picked = [index for one in rounds for index in one.picks]
    assert len(set(picked)) == 40
    assert all(index % 2 for index in picked)


def test_people_are_not_asked_for_excluded_samples():
    loop = learner(oracle="people", exclude=range(40))
    while (asked := loop.ask()).indices:
        assert min(asked.indices) >= 40
        loop.tell([TRUTH[index] for index in asked.indices])


@pytest.mark.parametrize(
    ("exclude", "error", "said"),
    [
        (range(70), ValueError, "exclude must leave 20 samples for the schedule, got 70 of 80 samples"),
        ([80], ValueError, "exclude"),
        ([0.5], TypeError, "exclude"),
        (torch.ones(79, dtype=torch.bool), ValueError, "exclude"),
    ],
)
def test_what_is_excluded_is_checked(exclude, error, said):
    with pytest.raises(error, match=said):
        learner(exclude=exclude)


def test_a_run_takes_a_list_of_samples_that_it_never_picks(tmp_path):
    file = listed(tmp_path / "never.csv", "index", *map(str, range(1000)))
    out = tmp_path / "run"
    run(of_digits(exclude=file, out=str(out), baselines=("random",)), quiet=True)
    for arm in ("prunefuse", "random"):
        assert all(int(row["index"]) >= 1000 for row in rows(out / arm / "seed0" / "picks.csv"))
    everything = listed(tmp_path / "all.csv", "index", *map(str, range(1400)))
    with pytest.raises(ConfigError, match="exclude must leave 45 samples"):
        run(of_digits(exclude=everything, out=str(tmp_path / "other")), quiet=True)


def test_a_part_of_the_pool_is_looked_at_another_in_each_round():
    seen = []

    def watched(logits):
        seen.append(logits)
        return logits[:, 0]

    whole = learner((6, 12, 20), config={"strategy": watched})
    loop = learner((6, 12, 20), config={"strategy": watched, "candidates": "15"})
    seen.clear()
    rounds = list(loop)
    assert [len(one) for one in seen] == [15, 15]
    assert not torch.equal(seen[0], seen[1])
    assert [len(one.picks) for one in rounds] == [6, 6, 8]
    scored = [line.flops for line in loop.planned if line.phase == "score_pool"]
    before = [line.flops for line in whole.planned if line.phase == "score_pool"]
    assert scored == [pytest.approx(before[0] * 15 / 74), pytest.approx(before[1] * 15 / 68)]
    again = list(learner((6, 12, 20), config={"strategy": watched, "candidates": "15"}))
    assert [one.picks for one in again] == [one.picks for one in rounds]


def test_a_part_must_have_what_a_round_picks():
    with pytest.raises(
        ValueError, match="candidates must be at least the 8 samples that a round picks, got 7"
    ):
        learner((6, 12, 20), config={"candidates": "7"})
    with pytest.raises(ConfigError, match="candidates"):
        learner((6, 12, 20), config={"candidates": "none"})


@pytest.mark.parametrize("strategy", ["typiclust", "probcover"])
def test_strategies_for_a_cold_start_choose_the_first_samples_too(strategy):
    [first, *_] = learner((6, 12), config={"strategy": strategy})
    [other, *_] = learner((6, 12), config={"strategy": "margin", "cold_start": strategy})
    [drawn, *_] = learner((6, 12), config={"strategy": strategy, "cold_start": "random"})
    assert first.picks == other.picks
    assert first.picks != drawn.picks
