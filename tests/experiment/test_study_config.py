"""Studies as files: what is read, what is refused, and which runs they come to."""

import dataclasses
from pathlib import Path

import pytest

from prunefuse._options import changed
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import PRESETS, RunConfig
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.experiment.shared import step_keys
from prunefuse.experiment.study import Study, read_study
from prunefuse.experiment.study.config import built_in, configured, text_of
from prunefuse.experiment.study.units import arm_alone, units_of
from prunefuse.training import RECIPES, Recipe

TINY = """
title = "Tiny"
about = "One line"
seeds = [0, 1]
against = ["dense", "random"]
[options]
data = "digits"
model = "mlp"
schedule = ["20", "40"]
strategy = "margin"
recipe.epochs = 1
[grid]
prune_ratio = [0.5, 0.7]
"""


def written(tmp_path: Path, text: str = TINY, *settings: str) -> Study:
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    return read_study(str(path), settings)


def test_a_file_is_read(tmp_path: Path) -> None:
    study = written(tmp_path)
    assert (study.name, study.title, study.about, study.seeds) == ("tiny", "Tiny", "One line", (0, 1))
    assert study.grid == {"prune_ratio": (0.5, 0.7)}
    configs = [configured(study, point) for point in study.points()]
    assert [config.prune_ratio for config in configs] == [0.5, 0.7]
    assert {(config.model, config.recipe.epochs, config.seeds) for config in configs} == {("mlp", 1, (0, 1))}
    assert Study.from_plain(study.plain()) == study


def test_a_baseline_that_all_points_have_is_one_run(tmp_path: Path) -> None:
    units = units_of(written(tmp_path))
    assert [unit.label for unit in units] == ["prunefuse, p 0.5", "dense", "random", "prunefuse, p 0.7"]
    names = {unit.label: unit.name for unit in units}
    assert units[0].against == units[3].against == (names["dense"], names["random"])
    assert len({unit.name for unit in units}) == 4


def test_options_that_an_arm_does_not_look_at_make_no_other_run(tmp_path: Path) -> None:
    """The dense network alone depends on the strategy; without fusion there is no complement."""
    many = '[grid]\nprune_ratio = [0.5]\ncomplement = ["keep", "zero"]\nfuse = [true, false]\nkd_lambda = [0.2, 0.8]\n'
    units = units_of(written(tmp_path, TINY.replace("[grid]\nprune_ratio = [0.5, 0.7]\n", many)))
    kinds = [unit.label.partition(",")[0] for unit in units]
    assert (kinds.count("dense"), kinds.count("random"), kinds.count("prunefuse")) == (1, 1, 2 * 2 + 2)
    units = units_of(written(tmp_path, TINY, "strategy=['margin','entropy']"))
    assert sum(unit.role == "dense" for unit in units) == 2
    assert sum(unit.role == "random" for unit in units) == 1
    by = {unit.label: unit for unit in units}
    assert by["prunefuse, p 0.7, by entropy"].against[0] == by["dense, by entropy"].name


def test_variants_stand_beside_each_other_in_every_combination(tmp_path: Path) -> None:
    text = TINY + '[[variant]]\nname = "not fused"\nfuse = false\n[[variant]]\nname = "fused"\n'
    study = written(tmp_path, text.replace('["dense", "random"]', '["not fused"]'))
    assert [(point.variant, point.place["prune_ratio"]) for point in study.points()] == [
        ("not fused", 0.5),
        ("not fused", 0.7),
        ("fused", 0.5),
        ("fused", 0.7),
    ]
    by = {unit.label: unit for unit in units_of(study)}
    for ratio in ("0.5", "0.7"):
        [other] = by[f"fused, p {ratio}"].against
        assert other == by[f"not fused, p {ratio}"].name


ALTERED = {
    "loop": {"strategy": "entropy", "start": "continue", "stochastic": "power", "finals": "last"},
    "cut": {"prune_ratio": 0.25, "complement": "zero", "distill": False, "fuse": False, "kd_lambda": 0.1},
    "length": {"final_epochs": 3},
}


@pytest.mark.parametrize(
    "changes", [{}, *ALTERED.values(), {"selector": "dense"}, {"strategy": "random"}, {"t_sync": 1}]
)
def test_an_arm_alone_has_the_steps_that_it_has_beside_others(changes: dict[str, object]) -> None:
    config = changed(RunConfig(schedule=("20", "40")), changes)
    for arm in config.arms:
        alone = arm_alone(config, arm)
        assert len(alone.arms) == 1
        pair = (config.loop_of(arm, 0, (20, 40)), alone.loop_of(alone.arms[0], 0, (20, 40)))
        assert step_keys(pair[0], {}) == step_keys(pair[1], {})


CHANGES = {
    "schedule": (20, 50),
    "strategy": "entropy",
    "passes": 4,
    "stochastic": "power",
    "beta": 2.0,
    "class_balanced": True,
    "diversity": "k_center",
    "preselect": 3,
    "cold_start": "typiclust",
    "candidates": "50%",
    "start": "continue",
    "shrink_to": 0.5,
    "noise": 0.1,
    "selector": "dense",
    "prune_ratio": 0.6,
    "criterion": "l1",
    "calibration": 10,
    "rounding": "ceil",
    "t_sync": 1,
    "fuse": False,
    "distill": False,
    "kd_lambda": 0.1,
    "kd_temperature": 2.0,
    "complement": "zero",
    "fused_lr": 0.1,
    "shrink_fused": True,
    "kd_annealing": "linear",
    "finals": "last",
    "recipe": {"lr": 0.2},
    "test_every_epoch": True,
    "workers": 1,
    "selector_recipe": Recipe(lr=0.2),
    "task": "multi-label",
    "seed": 1,
}
NEVER = {"stop_when", "stop", "features_from"}
SELECTS, TRAINS, FINISHES = "1/label", "1/train_selector", "1/train_final"
# Whose key is another one, beside those of the steps after it. Options that are not here are looked at by no step.
LOOKS = {
    **dict.fromkeys(
        (
            "strategy",
            "passes",
            "stochastic",
            "beta",
            "class_balanced",
            "diversity",
            "preselect",
            "candidates",
        ),
        SELECTS,
    ),
    **dict.fromkeys(("schedule", "cold_start"), SELECTS),
    **dict.fromkeys(
        ("selector", "prune_ratio", "criterion", "rounding", "selector_recipe", "recipe"), SELECTS
    ),
    **dict.fromkeys(("test_every_epoch", "task", "seed", "start"), SELECTS),
    "t_sync": TRAINS,
    **dict.fromkeys(("fuse", "distill", "kd_lambda", "kd_temperature", "complement"), FINISHES),
    **dict.fromkeys(("fused_lr", "shrink_fused", "kd_annealing"), FINISHES),
}


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(LoopConfig)])
def test_the_key_of_a_step_changes_with_what_it_looks_at_and_no_more(name: str) -> None:
    """Every option of a loop is here, so that a new one has to be thought of."""
    usual = LoopConfig((20, 40), strategy="margin")
    if name in NEVER:
        value = {"stop_when": ("kappa:0.9",), "features_from": "fc"}.get(name)
        assert name == "stop" or step_keys(changed(usual, {name: value}), {}) == {}
        return
    before, after = step_keys(usual, {}), step_keys(changed(usual, {name: CHANGES[name]}), {})
    order = (SELECTS, TRAINS, FINISHES)
    others = [step for step in order if before[step] != after[step]]
    assert others == (list(order[order.index(LOOKS[name]) :]) if name in LOOKS else [])


def test_a_final_training_of_another_length_leaves_selectors_as_they_are() -> None:
    usual = RunConfig(schedule=("20", "40"))
    short = changed(usual, {"final_epochs": 3})
    loop = short.loop_of("prunefuse", 0)
    assert (loop.recipe.epochs, loop.recipe.min_steps) == (3, 0)
    assert loop.training_of_selector == usual.recipe
    for arm in ("dense", "random"):  # those that it is compared with start from scratch
        assert short.loop_of(arm, 0) == usual.loop_of(arm, 0)
    part, recipe = changed(usual, {"final_epochs": "20%"}).loop_of("prunefuse", 0).recipe, usual.recipe
    assert (part.epochs, part.min_steps) == (0.2 * recipe.epochs, 0.2 * recipe.min_steps)
    keys = [step_keys(config.loop_of("prunefuse", 0, (20, 40)), {}) for config in (usual, short)]
    assert {step for step in keys[0] if keys[0][step] != keys[1][step]} == {"0/train_final", "1/train_final"}
    assert (
        len({unit.name for unit in units_of(read_study("time-to-accuracy"))}) == 5 * 6 + 1
    )  # one dense baseline for all


def test_a_network_that_goes_on_from_the_selector_is_trained_for_less_long_than_one_from_scratch() -> None:
    usual = RunConfig(schedule=("20", "40"))
    recipe, fused = usual.recipe, usual.loop_of("prunefuse", 0)
    assert (fused.recipe.epochs, fused.recipe.min_steps) == (0.4 * recipe.epochs, 0.4 * recipe.min_steps)
    assert fused.training_of_selector == recipe
    for other in ({"fuse": False}, {"final_epochs": "100%"}, {"selector": "resnet8"}, {"selector": "dense"}):
        config = changed(usual, other)
        loop = config.loop_of(config.arms[0], 0)
        assert (loop.recipe, loop.selector_recipe) == (recipe, None)
    assert PRESETS["cifar10-resnet56"].loop_of("prunefuse", 0).recipe == RECIPES["cifar"]


def test_another_network_or_data_set_is_another_step() -> None:
    config = LoopConfig((20, 40), strategy="margin")
    keys = [step_keys(config, {"model": model}) for model in ("a", "b")]
    assert set(keys[0].values()).isdisjoint(keys[1].values())


def test_a_longer_schedule_begins_with_the_same_steps() -> None:
    short, long = (step_keys(LoopConfig(sizes, strategy="margin"), {}) for sizes in ((20, 40), (20, 40, 60)))
    assert short.items() <= long.items()


@pytest.mark.parametrize("name", built_in())
def test_built_in_studies_are_whole(name: str) -> None:
    study = read_study(name)
    assert study.about
    assert "\n" not in study.about
    assert list(study.points())
    assert 'title = "' in text_of(name)
    if study.kind == "run":
        units = units_of(study)
        assert not study.against or any(unit.against for unit in units)
        read_study(name, ["on=digits"])


def test_settings_of_a_data_set_take_the_place_of_others() -> None:
    study = read_study("budgets", ["on=digits"])
    [config, *_] = [configured(study, point) for point in study.points()]
    assert (config.data, config.image_size, config.recipe.epochs) == ("digits", None, 40)
    usual = configured(read_study("budgets"), next(read_study("budgets").points()))
    assert (usual.data, usual.image_size, usual.model) == ("fashion_mnist", 14, "resnet20")
    assert (usual.flip, usual.crop, config.flip, config.crop) == (False, 0, None, None)
    told = (
        usual.recipe.epochs,
        usual.recipe.min_steps,
        usual.recipe.lr,
        usual.recipe.batch_size,
        usual.recipe.schedule,
    )
    assert told == (20, 300, 0.1, 64, "one-cycle")
    assert (usual.strategy, usual.kd_temperature, usual.kd_lambda) == ("margin", 4.0, 0.5)


def test_settings_change_one_thing(tmp_path: Path) -> None:
    study = written(
        tmp_path, TINY, "seeds=[3]", "epochs=7", "prune_ratio=0.25", "start=['fresh', 'shrink']", "model=none"
    )
    assert study.seeds == (3,)
    assert study.options["recipe.epochs"] == 7
    assert study.grid == {"prune_ratio": (0.25,), "start": ("fresh", "shrink")}
    assert "model" not in study.options
    # A list is the value of an option that is itself one.
    assert written(tmp_path, TINY, "schedule=['10', '30']").options["schedule"] == ["10", "30"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prune_ratio = [", "prune_ration = [", r"got 'prune_ration'; did you mean 'prune_ratio'\?"),
        ("[grid]", "[gird]", r"key must be one of .*, got 'gird'; did you mean 'grid'\?"),
        ("recipe.epochs", "recipe.epoch", r"got 'recipe.epoch'; did you mean 'recipe.epochs'\?"),
        ("[0.5, 0.7]", "0.5", "grid.prune_ratio must be a list of one or more values, got 0.5"),
        ("[0.5, 0.7]", "[]", "grid.prune_ratio must be a list of one or more values"),
        ("[0.5, 0.7]", "[0.5, 1.5]", r"tiny \(prune_ratio=1.5\): prune_ratio must be in \[0, 1\), got 1.5"),
        ("[0, 1]", "[0, 0]", r"seeds must be one or more different numbers from 0 on, got \[0, 0\]"),
        ("[0, 1]", "[]", "seeds must be one or more"),
        ("[0, 1]", "[true]", "seeds must be one or more"),
        ("[0, 1]", "3", "seeds must be a list, got 3"),
        ('"dense", "random"', '"dens"', r"against must be of dense, .*, got 'dens'; did you mean 'dense'\?"),
        ('title = "Tiny"', "title = 3", "title must be a text, got 3"),
        ('title = "Tiny"', "", "title must be a text, got None"),
        (
            'title = "Tiny"',
            'title = "Tiny"\nkind = "runs"',
            "kind must be one of run, extrapolate, pruning, flops, got 'runs'",
        ),
        (
            'title = "Tiny"',
            'title = "Tiny"\ndraw = ["model"]',
            r"draw must be of labels, epochs, selection, or what varies \(prune_ratio\)",
        ),
        ('title = "Tiny"', 'title = "Tiny"\non = "digit"', r"got 'digit'; did you mean 'digits'\?"),
        (
            'data = "digits"',
            'data = "digits"\nseeds = [1]',
            "option must not be 'seeds': a study has its own place for it",
        ),
        ('data = "digits"', 'data = "digits"\nout = "x"', "option must not be 'out'"),
        ("[grid]", "[grid", "must be TOML"),
        ('title = "Tiny"', 'title = "Tiny"\nvariant = 3', r"variant must be tables \[\[variant\]\], got 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, TINY.replace(old, new, 1))


@pytest.mark.parametrize("setting", ["epochs", "=3", "epoch=3", "prune_ratio=2"])
def test_wrong_settings_are_named(tmp_path: Path, setting: str) -> None:
    with pytest.raises(
        ConfigError, match=r"set must be KEY=VALUE|did you mean 'epochs'|prune_ratio must be in"
    ):
        written(tmp_path, TINY, setting)


def test_settings_of_a_computed_study() -> None:
    study = read_study("figure3", ["budgets=['20%']", "prune_ratio=0.5", "epochs=3"])
    assert study.options["budgets"] == ["20%"]
    assert study.grid == {"prune_ratio": (0.5,)}
    with pytest.raises(ConfigError, match="got 'budget'"):
        read_study("figure3", ["budget=3"])


def test_what_variants_differ_in_is_not_set(tmp_path: Path) -> None:
    text = TINY + '[[variant]]\nname = "not fused"\nfuse = false\n[[variant]]\nname = "fused"\n'
    with pytest.raises(
        ConfigError, match="set: option must be one that no variant has, got 'fuse', which not fused have"
    ):
        written(tmp_path, text, "fuse=true")


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"study must be a file, or one of ablation, .*, got 'budget'; did you mean 'budgets'",
    ):
        read_study("budget")
    with pytest.raises(ConfigError, match="study must be a file"):
        read_study(str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml cannot be read"):
        read_study(str(tmp_path / "binary.toml"))


def test_variants_have_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="variant: name must be another one in each, got a, a"):
        written(tmp_path, TINY + '[[variant]]\nname = "a"\n[[variant]]\nname = "a"\nfuse = false\n')
