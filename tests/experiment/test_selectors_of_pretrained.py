"""Selectors cut from a pretrained network by OBSPA: they start usable, their changes are fused, and they go on exactly."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import prunefuse
from prunefuse import ActiveLearning, LoopConfig, Recipe, models
from prunefuse.data import load
from prunefuse.errors import ConfigError, RunInterrupted
from prunefuse.experiment import loop as module
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.cost import selection_cost
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.experiment.records import Phase
from prunefuse.experiment.run import resume, run
from prunefuse.training import evaluate, train

DIGITS = load("digits")
POOL, TEST = (
    TensorDataset(
        torch.stack([image for image, _ in items][:400]), torch.tensor([int(y) for _, y in items][:400])
    )
    for items in (DIGITS.pool, DIGITS.test)
)
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.01, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(10, 16, 24), recipe=RECIPE, criterion="obspa", calibration=400)


class Products(nn.Module):
    """Layers whose weights read channels along axis 0."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(64, 32) / 8)
        self.second = nn.Parameter(torch.randn(32, 24) / 5)
        self.last = nn.Linear(24, 10)

    def forward(self, x):
        x = (x.flatten(1) @ self.first).relu()
        return self.last((x @ self.second).relu())


NETWORKS = {
    "mlp": lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(48, 32)),
    "resnet-A": lambda: models.resnet8(in_channels=1, shortcut="A"),
    "resnet-B": lambda: models.resnet8(in_channels=1, shortcut="B"),
    "products": Products,
    "groups": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(96, 10),
    ),
}
_trained = {}


def pretrained(name):
    """A factory of trained networks; each is trained once."""
    if name not in _trained:
        torch.manual_seed(0)
        model = NETWORKS[name]()
        train(model, POOL, Recipe(epochs=15, batch_size=16, lr=0.05, schedule="one-cycle"))
        _trained[name] = model.state_dict()

    def factory():
        model = NETWORKS[name]()
        model.load_state_dict(_trained[name])
        return model

    return factory


def learner(config=CONFIG, name="mlp", **options):
    return ActiveLearning(pretrained(name), POOL, TEST, config, **options)


def nothing(model, data, *, device, seed, teacher=None):
    """A training that leaves a network as it is."""


class Stopped(Exception):
    """Raised by listeners that stop a loop."""


def facts(rounds):
    """What rounds found, apart from the clock."""
    return [(r.picks, r.utilities, r.selector_accuracy, r.final_accuracy) for r in rounds]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- where a selector starts, and what is fused


@pytest.mark.parametrize("name", NETWORKS)
def test_a_selector_starts_as_pruning_without_training_leaves_it(name):
    dense = pretrained(name)().eval()
    images = torch.stack([image for image, _ in POOL])
    plan, small = prunefuse.prune_without_finetuning(dense, images[:1], images, ratio=0.5)
    loop = learner(replace(CONFIG, schedule=(10,)), name, fit=nothing)
    [done] = loop
    assert loop.plan == plan
    assert same(loop.selector.state_dict(), small.state_dict())
    assert done.selector_accuracy > 0.7 * evaluate(dense, TEST)
    by_l2 = learner(replace(CONFIG, schedule=(10,), criterion="l2"), name, fit=nothing)
    assert next(r.selector_accuracy for r in by_l2) < done.selector_accuracy
    # What nothing was trained on is fused into what was pretrained: that is what comes out.
    assert same(loop.final.state_dict(), dense.state_dict())


@pytest.mark.parametrize("complement", ["keep", "zero", "preserve"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_training_changes_comes_into_the_fused_network(name, complement):
    def trained(model, data, *, device, seed, teacher=None):
        if teacher is None:  # the selector
            train(model, data, RECIPE)

    loop = learner(replace(CONFIG, schedule=(40,), complement=complement), name, fit=trained)
    start = learner(replace(CONFIG, schedule=(40,)), name, fit=nothing)
    [*_], [*_] = loop, start
    if complement != "keep":  # then there is nothing beside the selector, or nothing that it listens to
        shown = torch.stack([image for image, _ in TEST])
        with torch.no_grad():
            both = (one.eval()(shown) for one in (loop.final, loop.selector))
            torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)
        return
    dense, before = pretrained(name)().state_dict(), start.selector.state_dict()
    final, changed = loop.final.state_dict(), loop.selector.state_dict()
    for parameter, value in loop.selector.named_parameters():
        axes = loop.plan.kept.get(parameter, {})
        at = torch.meshgrid(
            *(torch.tensor(axes.get(axis, range(n))) for axis, n in enumerate(dense[parameter].shape)),
            indexing="ij",
        )
        wanted = dense[parameter].clone()
        wanted[at] += value.detach() - before[parameter]
        torch.testing.assert_close(final[parameter], wanted)
        assert not torch.equal(changed[parameter], before[parameter])
    assert all(bool((final[one] > 0).all()) for one in final if one.endswith("running_var"))


def test_the_selector_is_cut_by_samples_that_may_be_picked_and_no_label_is_read():
    class Images:
        def __init__(self):
            self.read = set()

        def __len__(self):
            return len(POOL)

        def __getitem__(self, index):
            self.read.add(index)
            return POOL[index][0]

    images, seen = Images(), []
    options = {"exclude": list(range(100)), "oracle": lambda indices: [int(POOL[i][1]) for i in indices]}
    for calibration in (50, 1024):
        images.read.clear()
        ActiveLearning(pretrained("mlp"), images, None, replace(CONFIG, calibration=calibration), **options)
        seen.append(images.read - {0})  # the first is the example that networks are planned with
    assert len(seen[0]) == 50
    assert seen[1] == set(range(100, 400))


def test_inputs_may_be_mappings():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(30, 16)
            self.hidden = nn.Linear(16, 32)
            self.last = nn.Linear(32, 3)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask[..., None].float()
            return self.last((self.hidden(self.words(input_ids)) * mask).sum(1).relu())

    source = torch.Generator().manual_seed(0)
    words = torch.randint(0, 30, (120, 6), generator=source)
    pool = [
        {"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": int(row[0] % 3)} for row in words
    ]
    rounds = list(ActiveLearning(Words, pool, pool[:30], replace(CONFIG, schedule=(9, 20))))
    assert [r.labels for r in rounds] == [9, 20]


# --- what it costs


def test_flops_of_calibrating_by_hand():
    """Runs as far as they go, and the products of what goes into the layers that read channels, with a one for the bias."""
    samples, dense, small = 400, (64, 48, 32, 10), (64, 24, 16, 10)

    def forward(widths, layers=3):
        return sum(2 * a * b for a, b in list(pairwise(widths))[:layers])

    looking = (64 + samples) * forward(dense) + 2 * samples * (49**2 + 33**2)  # the first batch for the order
    second = forward(dense, 2) + forward(small, 2) + 2 * (25**2 + 16 * 25)
    third = forward(dense) + forward(small) + 2 * (17**2 + 10 * 17)
    [line] = [c for c in learner().planned if c.phase == "plan"]
    assert line.flops == looking + samples * (second + third)
    assert (line.network, line.round, line.labels) == ("selector", 0, 10)


@pytest.mark.parametrize("t_sync", [0, 1])
def test_calibrating_is_in_the_forecast_and_in_the_ledger(t_sync):
    loop = learner(replace(CONFIG, t_sync=t_sync))
    done = [c for r in loop for c in r.costs]
    assert [replace(c, seconds=0.0, detail="") for c in done if c.phase != "fuse"] == list(loop.planned)
    plans = [c for c in done if c.phase == "plan"]
    assert [c.round for c in plans] == ([0, 1, 2] if t_sync else [0])
    assert all(c.flops > 0 and c.seconds > 0 for c in plans)
    without = replace(CONFIG, criterion="l2", t_sync=t_sync)
    spent = [selection_cost(c, 24).flops for c in (done, [c for r in learner(without) for c in r.costs])]
    assert spent[0] - spent[1] == sum(c.flops for c in plans if c.labels < 24)


def test_a_state_remembers_what_calibrating_took():
    first = learner()
    next(iter(first))
    again = module.LoopState.restore(first.state.to_json(), first.state.tensors())
    assert learner(state=again).planned == first.planned
    old = {
        name: value for name, value in first.state.plan.items() if name != "flops"
    }  # of an earlier version
    loop = learner(state=replace(again, plan=old))
    assert all(c.phase != "plan" for c in loop.planned)


# --- going on


@pytest.mark.parametrize("t_sync", [0, 1])
def test_a_loop_that_is_stopped_anywhere_goes_on_to_the_same_bits(tmp_path, t_sync):
    config = replace(CONFIG, t_sync=t_sync)
    whole = learner(config)
    wanted = facts(whole)
    told = stopped = 0

    def stops(event):
        nonlocal told
        told += 1
        if told == 4 + 3 * stopped:  # later each time
            raise Stopped

    finished = False
    while not finished:
        told = 0
        try:
            loop = learner(config, folder=tmp_path / "mine", listener=stops, checkpoint_seconds=0)
            [*_] = loop
            finished = True
        except Stopped:
            stopped += 1
    assert stopped > 3
    assert facts(loop.state.rounds) == wanted
    for name in ("selector", "final"):
        assert same(load_file(tmp_path / f"mine/{name}.safetensors"), getattr(whole, name).state_dict())


@pytest.mark.parametrize("t_sync", [0, 1])
def test_a_state_goes_on_without_calibrating_again(t_sync, monkeypatch):
    config = replace(CONFIG, t_sync=t_sync)
    wanted = facts(learner(config))
    first = learner(config)
    next(iter(first))
    state = first.state
    again = module.LoopState.restore(state.to_json(), state.tensors())
    own, calls = module.cut, []
    monkeypatch.setattr(module, "cut", lambda *args, **more: (calls.append(1), own(*args, **more))[1])
    loop = learner(config, state=again)
    assert not calls
    assert loop.plan == first.plan
    [*_] = loop
    assert facts(loop.state.rounds) == wanted
    assert len(calls) == (2 if t_sync else 0)  # cut anew from each fused network


@pytest.mark.parametrize("at", [("train_final", 0), ("train_final", 1)])
def test_a_round_goes_on_with_the_channels_that_it_began_with(tmp_path, monkeypatch, at):
    """Another machine's last bits may choose others."""
    config = replace(CONFIG, t_sync=1, schedule=(10, 16))
    whole = learner(config)
    wanted = facts(whole)

    def stops(event):
        # The final network that is cut from next is a selector's training in the ledger.
        if isinstance(event, Phase) and event.network == "final" and event.round == at[1]:
            raise Stopped

    with pytest.raises(Stopped):
        [*_] = learner(config, folder=tmp_path, listener=stops)
    own = module.cut
    other = lambda dense, example, config, pool, **more: own(  # noqa: E731
        dense, example, replace(config, criterion="random", seed=5), pool, **more
    )
    if at[1] == 1:
        monkeypatch.setattr(module, "cut", other)
    else:
        made = []
        monkeypatch.setattr(
            module,
            "cut",
            lambda *args, **more: (made.append(1), (other if len(made) == 1 else own)(*args, **more))[1],
        )
    loop = learner(config, folder=tmp_path)
    [*_] = loop
    assert facts(loop.state.rounds) == wanted
    assert same(loop.final.state_dict(), whole.final.state_dict())


@pytest.mark.parametrize(
    ("change", "said"), [({"criterion": "l2"}, "criterion 'obspa'"), ({"calibration": 7}, "400")]
)
def test_a_folder_is_of_one_cut(tmp_path, change, said):
    next(iter(learner(folder=tmp_path)))
    with pytest.raises(ValueError, match=f"is of a loop with .*{said}"):
        learner(replace(CONFIG, **change), folder=tmp_path)


# --- what is refused, and the command line


def test_networks_that_cannot_be_refitted_are_refused():
    flat = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    with pytest.raises(
        ValueError, match=r"^criterion must not be obspa here: model must have a convolution or linear"
    ):
        ActiveLearning(flat, POOL, TEST, CONFIG)


def test_options_are_checked():
    with pytest.raises(ValueError, match="calibration must be at least 1, got 0"):
        replace(CONFIG, calibration=0)
    with pytest.raises(ValueError, match="criterion must be one of l2, l1, random, obspa, got 'l3'"):
        replace(CONFIG, criterion="l3")
    with pytest.raises(ConfigError, match="criterion must be one of l2, l1, random, got 'obspa'"):
        ExtrapolateConfig(criterion="obspa")


def test_a_run_from_a_checkpoint_cuts_by_it_also_after_it_was_stopped(tmp_path):
    save_file(models.build("mlp", 10, 1, image_size=(8, 8)).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "stops.py").write_text(
        "from pathlib import Path\n\n\ndef start(folder):\n    mark = Path(__file__).with_suffix('.done')\n\n"
        "    def heard(task, event):\n        if type(event).__name__ == 'Round' and not mark.exists():\n"
        "            mark.touch()\n            raise KeyboardInterrupt\n\n    return heard\n"
    )
    common = RunConfig(
        model="mlp",
        weights=str(tmp_path / "w.safetensors"),
        criterion="obspa",
        calibration=100,
        schedule=("20", "30", "40"),
        recipe=replace(RECIPE, epochs=1),
        seeds=(0,),
        baselines=(),
        threads=1,
        jobs=1,
        device="cpu",
    )
    run(replace(common, out=str(tmp_path / "whole")), quiet=True)
    stopped = replace(common, listener=f"{tmp_path}/stops.py:start", out=str(tmp_path / "stopped"))
    with pytest.raises(RunInterrupted):
        run(stopped, quiet=True)
    resume(tmp_path / "stopped", quiet=True)
    for name in ("selector", "final"):
        files = (tmp_path / one / "prunefuse/seed0" / f"{name}.safetensors" for one in ("whole", "stopped"))
        assert same(*map(load_file, files))
