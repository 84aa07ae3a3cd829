"""An option is one field of a configuration: what is made of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prunefuse import _names, models
from prunefuse._options import at_least, changed, documented, option, places
from prunefuse.cli._options import ConfigFile, Given, configure, configured, page
from prunefuse.cli.app import app
from prunefuse.cli.extrapolate import extrapolate
from prunefuse.cli.options_page import options_page
from prunefuse.cli.run import run
from prunefuse.data import _registry as registry
from prunefuse.dynamics import PRESETS as SCORES
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import PRESETS, RunConfig
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.labeling import formats
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.pruning._choose.ranking import ROUNDINGS
from prunefuse.pruning._choose.scores import ALL_CRITERIA, CRITERIA, NEEDS
from prunefuse.pruning._choose.targets import QUANTITIES
from prunefuse.pruning.options import PRESETS as PLAN_PRESETS
from prunefuse.scoring import ENSEMBLE_STRATEGIES, LOGIT_STRATEGIES
from prunefuse.selection._strategies import STRATEGIES
from prunefuse.training import RECIPES, Recipe

REPOSITORY = Path(__file__).parents[1]


@documented
@dataclass(frozen=True)
class OneMore(RunConfig):
    """A run with one more option."""

    stamina: int = field(
        default=7, metadata=option("The run", "Rounds without progress before it ends", check=at_least(1))
    )


def asked(kind, *arguments):
    """The configuration that a command with these options makes of the arguments, and what it printed."""
    kept, command = [], typer.Typer(rich_markup_mode="markdown")

    @configured(kind)
    def start(*, config: ConfigFile = None, given: Given) -> None:
        kept.append(configure(kind(), given, config, "run"))

    command.command()(start)
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return (kept[0] if kept else result.exception), result.output


def test_one_more_field_is_in_the_python_signature_and_the_docstring():
    assert inspect.signature(OneMore).parameters["stamina"].default == 7
    assert "stamina: Rounds without progress before it ends." in OneMore.__doc__
    assert OneMore(stamina=3).stamina == 3
    with pytest.raises(ConfigError, match=r"^stamina must be at least 1, got 0$"):
        OneMore(stamina=0)
    with pytest.raises(TypeError, match=r"^stamina must be a whole number, got 'long'"):
        OneMore(stamina="long")


def test_one_more_field_is_on_the_command_line_and_in_its_help():
    assert asked(OneMore)[0] == OneMore()
    assert asked(OneMore, "--stamina", 3, "--epochs", 5)[0] == changed(
        OneMore(), {"stamina": 3, "recipe": {"epochs": 5}}
    )
    _, help = asked(OneMore, "--help")
    assert "Rounds without progress before it ends. (7)" in help
    assert str(asked(OneMore, "--stamina", 0)[0]) == "stamina must be at least 1, got 0"


def test_fields_of_every_type_are_read_from_the_command_line():
    @dataclass(frozen=True)
    class Types(RunConfig):
        sizes: tuple[int, ...] = field(default=(1, 2), metadata=option("The run", "Sizes"))
        rates: tuple[float, ...] | None = field(default=None, metadata=option("The run", "Rates"))
        sure: bool = field(default=True, metadata=option("The run", "Sure"))

    arguments = ("--sizes", "3,4", "--rates", "0.5", "--no-sure", "--steps", "2:0.5")
    made, _ = asked(Types, *arguments, "--schedule", "5%,100")
    assert (made.sizes, made.rates, made.sure, made.schedule) == ((3, 4), (0.5,), False, ("5%", "100"))
    assert made.recipe.steps == ((2, 0.5),)
    assert str(asked(Types, "--sizes", "3,x")[0]) == "sizes must be such as 1,2, got '3,x'"
    assert str(asked(Types, "--steps", "2")[0]).startswith("steps must be such as 1:0.1,90:1.0")


def test_one_more_field_goes_to_the_run_folder_and_back(tmp_path):
    made = OneMore(stamina=3, seeds=(4,), recipe=Recipe(epochs=2, steps=((1, 0.5), (2, 1.0))))
    stored = json.loads(json.dumps({"config": dataclasses.asdict(made)}))
    assert stored["config"]["stamina"] == 3
    assert changed(OneMore(), stored["config"]) == made
    file = tmp_path / "config.json"
    file.write_text(json.dumps(stored))
    assert asked(OneMore, "--config", file)[0] == made
    assert asked(OneMore, "--config", file, "--stamina", 2)[0] == dataclasses.replace(made, stamina=2)


def test_one_more_field_is_in_a_file_and_in_the_documentation(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('stamina = 5\nstrategy = "margin"\n[recipe]\nlr = 1\n')
    made, _ = asked(OneMore, "--config", file, "--strategy", "energy")
    assert (made.stamina, made.strategy, made.recipe.lr, made.recipe.epochs) == (5, "energy", 1.0, 40)
    assert "| `--stamina` | `stamina` | `7` |" in page({"more": OneMore})


@pytest.mark.parametrize(("command", "kind"), [(run, RunConfig), (extrapolate, ExtrapolateConfig)])
def test_every_field_of_a_configuration_and_of_its_recipe_is_an_option(command, kind):
    parameters = inspect.signature(command).parameters
    fields = {item.name for item in dataclasses.fields(kind)}
    assert fields <= set(parameters)
    own = {"schedule": "lr_schedule"}
    assert {own.get(item.name, item.name) for item in dataclasses.fields(Recipe)} <= set(parameters)
    for place in places(kind):
        assert place.option.help


def test_the_page_of_options_is_current():
    written = (REPOSITORY / "docs/options.md").read_text(encoding="utf-8")
    assert written == options_page(), "run: python -m prunefuse.cli.options_page > docs/options.md"


def test_the_names_of_options_are_those_of_what_they_stand_for():
    assert models.names() == _names.MODELS
    assert STRATEGIES == _names.STRATEGIES
    assert tuple(SCORES) == _names.SCORES
    assert CRITERIA == _names.CRITERIA
    assert tuple(ROUNDINGS) == _names.ROUNDINGS
    assert registry.NAMES == _names.DATA
    assert tuple(name for name in ALL_CRITERIA if name not in NEEDS) == _names.CRITERIA_WITHOUT_DATA
    assert tuple(LOGIT_STRATEGIES) == _names.LOGIT_STRATEGIES
    assert tuple(ENSEMBLE_STRATEGIES) == _names.ENSEMBLE_STRATEGIES
    assert formats.NAMES == _names.LABEL_FORMATS
    assert tuple(PLAN_PRESETS) == _names.PLAN_PRESETS
    assert tuple(QUANTITIES) == _names.QUANTITIES


WITHOUT_TORCH = """
import importlib, sys
for name in ("run", "extrapolate", "score", "prune", "bench", "label", "options_page"):
    importlib.import_module(f"prunefuse.cli.{name}")
from prunefuse.cli._options import page
from prunefuse.experiment.config import PRESETS, RunConfig
assert "--t-sync" in page({"run": RunConfig}) and RunConfig() == PRESETS["digits"]
print("torch" in sys.modules, "numpy" in sys.modules)
"""


def test_options_are_read_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.fixture
def wanted(monkeypatch):
    """The configurations that `prunefuse run` and `prunefuse extrapolate` would run; nothing is run."""
    kept = []

    def stop(config, *, command, quiet):
        kept.append(config)
        raise OSError("stopped by the test")

    monkeypatch.setattr("prunefuse.experiment.run.run", stop)
    monkeypatch.setattr("prunefuse.experiment.extrapolate.run", stop)
    return kept


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


RECIPE_OPTIONS = shlex.split(
    "--recipe cifar --epochs 3 --min-steps 5 --batch-size 8 --lr 0.5 --lr-schedule one-cycle --momentum 0.5 --nesterov "
    "--weight-decay 0.1 --steps 2:1,1:0.5 --warmup 0.1 --autocast --channels-last"
)


def test_both_commands_have_every_option_of_a_recipe(wanted):
    call("run", *RECIPE_OPTIONS)
    call("extrapolate", *RECIPE_OPTIONS, "--shortcut", "B", "--dropout", 0.1, "--rounding", "ceil")
    expected = Recipe(
        3,
        5,
        8,
        0.5,
        0.5,
        True,
        0.1,
        "one-cycle",
        ((2, 1.0), (1, 0.5)),
        0.1,
        autocast=True,
        channels_last=True,
    )
    assert [config.recipe for config in wanted] == [expected, expected]
    assert (wanted[1].shortcut, wanted[1].dropout, wanted[1].rounding) == ("B", 0.1, "ceil")


def test_left_out_recipes_are_the_presets_and_the_data_sets(wanted):
    call("run", "--data", "cifar10")
    call("extrapolate", "--data", "cifar10", "--lr", 0.2)
    call("extrapolate", "--lr", 0.2)
    assert wanted[0].recipe == RECIPES["digits"]
    assert wanted[1].training == dataclasses.replace(RECIPES["cifar"], lr=0.2)
    assert wanted[2].training == dataclasses.replace(RECIPES["digits"], lr=0.2)


def test_a_file_goes_over_the_preset_and_the_command_line_over_the_file(wanted, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'schedule = ["5%", 200]\nfuse = false\nseeds = [3, 8]\nrecipe = "cifar"\nbaselines = []\n',
        encoding="utf-8",
    )
    call("run", "--preset", "cifar10-resnet56", "--config", file)
    call("run", "--config", file, "--fuse", "--seeds", 3, "--epochs", 2, "--no-distill")
    paper = PRESETS["cifar10-resnet56"]
    assert wanted[0] == dataclasses.replace(
        paper, schedule=("5%", 200), fuse=False, seeds=(3, 8), baselines=(), recipe=RECIPES["cifar"]
    )
    assert wanted[1] == RunConfig(
        schedule=("5%", 200),
        seeds=(3, 4, 5),
        baselines=(),
        distill=False,
        recipe=dataclasses.replace(RECIPES["cifar"], epochs=2),
    )


@pytest.mark.parametrize("command", ["run", "extrapolate"])
def test_what_a_file_says_wrong_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("it.toml")
    for content, message in (
        ("epochs = 3", "it.toml: key must be one of data, root,"),
        ("[recipe]\nepoch = 3", "it.toml: recipe.key must be one of epochs,"),
        ('[recipe]\nepochs = "3"', "it.toml: recipe.epochs must be a whole number, got '3' (str)"),
        ("prune_ratio = 2.0", "it.toml: prune_ratio must be in [0, 1), got 2.0"),
        ('seeds = "1"', "it.toml: seeds must be a tuple of whole numbers, got '1' (str)"),
        ('recipe = "mine"', "it.toml: recipe must be one of cifar, digits, fashion_mnist, text, got 'mine'"),
        ("[data]\nname = 3", "it.toml: data must be a string, got {'name': 3}"),
        ("data", "it.toml: content must be TOML"),
    ):
        file.write_text(content)
        result = call(command, "--config", file)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert result.output.startswith(f"Error: {message}"), result.output
    assert "must be a file, got no.toml" in call(command, "--config", "no.toml").output


def test_the_file_of_a_run_folder_is_of_one_command(wanted, tmp_path):
    stored = {"format": 1, "config": dataclasses.asdict(RunConfig(strategy="margin", out="before"))}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(stored))
    call("run", "--config", file)
    assert wanted == [RunConfig(strategy="margin")]
    file.write_text(json.dumps({**stored, "kind": "extrapolate"}))
    assert f"{file}: kind must be run, got 'extrapolate'" in call("run", "--config", file).output.replace(
        "\n", ""
    )


def test_run_folders_from_before_an_option_was_added_are_read():
    made = ExtrapolateConfig(model="mlp", recipe=Recipe(epochs=3), fuse=True, prune_ratio=0.5)
    stored = json.loads(json.dumps(dataclasses.asdict(made)))
    for name in ("shortcut", "dropout", "rounding"):
        del stored[name]
    assert ExtrapolateConfig.from_json(stored) == made
    assert ExtrapolateConfig.from_json({**stored, "recipe": None}).recipe is None


def test_a_run_contains_its_loop_and_its_recipe():
    recipe = Recipe(epochs=10)
    config = RunConfig(strategy="margin", prune_ratio=0.25, seeds=(4, 5), recipe=recipe)
    alike = LoopConfig(config.schedule, "margin", prune_ratio=0.25, recipe=recipe, seed=4)
    assert config.loop == dataclasses.replace(alike, recipe=Recipe(epochs=4), selector_recipe=recipe)
    assert dataclasses.replace(config, final_epochs="100%").loop == alike
    assert RunConfig(selector="resnet8").loop.selector == "model"
    random = config.loop_of("random", 5)
    assert (random.selector, random.strategy, random.seed, random.recipe) == (
        "dense",
        "random",
        5,
        config.recipe,
    )
