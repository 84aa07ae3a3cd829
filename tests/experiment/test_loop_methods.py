"""What each selector and switch does: weights fused, teachers, T_sync, and which network is trained when."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunefuse import models
from prunefuse._seeds import derive, isolated
from prunefuse.data import TensorImages, load
from prunefuse.experiment import loop as loop_module
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.training import Recipe

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.05, schedule="one-cycle")
CONFIG = LoopConfig(schedule=(10, 16, 24), recipe=RECIPE)
DIGITS = load("digits")
POOL = TensorImages(DIGITS.pool.images[:60], DIGITS.pool.labels[:60])
TEST = TensorImages(DIGITS.test.images[:30], DIGITS.test.labels[:30])


def mlp() -> nn.Module:
    return models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16, 16))


def learner(config: LoopConfig = CONFIG, **options: Any) -> ActiveLearning:
    return ActiveLearning(mlp, POOL, TEST, config, **options)


class Trainings(list[dict[str, Any]]):
    """What `train` was called with, and the weights each network started from."""


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    calls = Trainings()
    train = loop_module.train

    def recording(model: nn.Module, data: Any, recipe: Recipe, **options: Any) -> Any:
        start = {k: v.clone() for k, v in model.state_dict().items()}
        calls.append({"model": model, "start": start, "samples": len(data), "recipe": recipe, **options})
        result = train(model, data, recipe, **options)
        calls[-1]["end"] = {k: v.clone() for k, v in model.state_dict().items()}
        return result

    monkeypatch.setattr(loop_module, "train", recording)
    return calls


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def theta(seed: int = 0) -> dict[str, Tensor]:
    """The dense network's initial weights."""
    with isolated(derive(seed, "dense")):
        return mlp().state_dict()


def widths(call: dict[str, Any]) -> list[int]:
    return [v.shape[0] for k, v in call["start"].items() if k.endswith("weight")]


def small_part(loop: ActiveLearning, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The positions of the selector in dense weights."""
    dense = mlp()
    dense.load_state_dict(weights)
    assert loop.plan is not None
    return loop.plan.extract(dense).state_dict()


def test_prunefuse_trains_a_pruned_selector_and_a_fused_network(trainings: Trainings) -> None:
    loop = learner()
    list(loop)
    assert [c["samples"] for c in trainings] == [10, 10, 16, 16, 24, 24]
    selectors, finals = trainings[::2], trainings[1::2]
    for selector, final in zip(selectors, finals, strict=True):
        assert widths(selector) == [8, 8, 10]
        assert widths(final) == [16, 16, 10]
        # The selector starts anew every round, from the part of theta it was cut from.
        assert same(selector["start"], small_part(loop, theta()))
        # The fused network holds the trained selector bit for bit, theta's own weights elsewhere.
        assert same(small_part(loop, final["start"]), selector["end"])
        changed = sum(int((final["start"][k] != v).sum()) for k, v in theta().items())
        assert changed == sum(v.numel() for v in selector["end"].values())
        distillation = final["distillation"]
        assert distillation.teacher is selector["model"]
        assert (distillation.weight, distillation.temperature) == (CONFIG.kd_lambda, CONFIG.kd_temperature)
        assert selector["distillation"] is None
        # One order of the data per round, the same for both networks.
        assert selector["seed"] == final["seed"]
    assert len({c["seed"] for c in finals}) == 3
    assert loop.selector is selectors[-1]["model"]
    assert loop.final is finals[-1]["model"]


def test_every_arm_of_a_seed_shares_the_dense_initialization(trainings: Trainings) -> None:
    list(learner(replace(CONFIG, fuse=False)))
    list(learner(replace(CONFIG, selector="dense")))
    list(learner(replace(CONFIG, selector="dense", strategy="random")))
    list(
        learner(
            replace(CONFIG, selector="model"),
            selector_factory=lambda: models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(4,)),
        )
    )
    dense = [c for c in trainings if widths(c) == [16, 16, 10]]
    assert len(dense) == 12
    assert all(same(c["start"], theta()) for c in dense)
    list(learner(replace(CONFIG, selector="dense", seed=1)))
    assert same(trainings[-1]["start"], theta(1))
    assert not same(theta(0), theta(1))


def test_switches_change_one_thing_each(trainings: Trainings) -> None:
    config = replace(CONFIG, schedule=(10,))

    def final(**change: Any) -> dict[str, Any]:
        trainings.clear()
        list(learner(replace(config, **change)))
        return trainings[-1]

    full, unfused, undistilled = final(), final(fuse=False), final(distill=False)
    assert same(unfused["start"], theta())
    assert unfused["distillation"] is not None
    assert same(undistilled["start"], full["start"])
    assert undistilled["distillation"] is None
    trainings.clear()
    list(learner(replace(config, fuse=False, distill=False)))
    # Neither fused nor taught: at the last budget there is no use for a selector.
    assert [widths(c) for c in trainings] == [[16, 16, 10]]
    assert final(kd_lambda=0.25, kd_temperature=2.0)["distillation"].weight == 0.25


def test_fused_weights_learn_slower(trainings: Trainings) -> None:
    """Where the selector's weights are, and nowhere else."""
    loop = learner(replace(CONFIG, schedule=(10,), fused_lr=0.0))
    list(loop)
    start, end = trainings[-1]["start"], trainings[-1]["end"]
    assert same(small_part(loop, start), trainings[0]["end"])
    assert same(small_part(loop, end), trainings[0]["end"])  # kept as they are
    factors = trainings[-1]["lr_factors"]
    fused = sum(value.numel() for value in trainings[0]["end"].values())
    assert sum(int((factor == 0).sum()) for factor in factors.values()) == fused
    moved = sum(int((end[name] != start[name]).sum()) for name in factors)
    assert 0 < moved <= sum(factor.numel() for factor in factors.values()) - fused
    assert all(bool((end[name] == start[name])[factors[name] == 0].all()) for name in factors)
    # In another round, too, and never for the selector, or where nothing is fused.
    trainings.clear()
    list(learner(replace(CONFIG, fused_lr=0.25)))
    least = [c["lr_factors"] and min(one.min() for one in c["lr_factors"].values()) for c in trainings]
    assert least == [None, 0.25] * 3
    trainings.clear()
    list(learner(replace(CONFIG, schedule=(10,), fused_lr=0.25, fuse=False)))
    assert [c["lr_factors"] for c in trainings] == [None, None]


def test_a_fused_network_is_shrunk_and_perturbed(trainings: Trainings) -> None:
    def start(**change: Any) -> dict[str, Tensor]:
        trainings.clear()
        list(learner(replace(CONFIG, schedule=(10,), **change)))
        return trainings[-1]["start"]

    plain = start()
    shrunk = start(shrink_fused=True, shrink_to=0.5, noise=0.0)
    assert all(torch.equal(shrunk[name], 0.5 * value) for name, value in plain.items())
    noisy = start(shrink_fused=True, shrink_to=0.5, noise=0.1)
    noise = torch.cat([(noisy[name] - shrunk[name]).flatten() for name in plain])
    assert 0.09 < noise.std() < 0.11
    assert same(noisy, start(shrink_fused=True, shrink_to=0.5, noise=0.1))
    assert same(theta(), start(shrink_fused=True, fuse=False))


def test_a_teacher_fades(trainings: Trainings) -> None:
    list(learner(replace(CONFIG, schedule=(10,), kd_annealing="cosine", kd_lambda=0.3)))
    distillation = trainings[-1]["distillation"]
    assert (distillation.weight_at(0.0), distillation.weight_at(1.0)) == pytest.approx((0.3, 1.0))


def test_variants_that_a_training_of_ones_own_cannot_follow_are_refused() -> None:
    def fit(model: nn.Module, data: Any, *, device: Any, seed: int, teacher: Any = None) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="fused_lr must be 1 with fit"):
        learner(replace(CONFIG, fused_lr=0.5), fit=fit)
    with pytest.raises(ValueError, match="kd_annealing must be none with fit"):
        learner(replace(CONFIG, kd_annealing="linear"), fit=fit)
    learner(replace(CONFIG, fused_lr=0.5, kd_annealing="linear", fuse=False, distill=False), fit=fit)


def test_complements(trainings: Trainings) -> None:
    starts = {}
    for complement in ("keep", "zero", "reinit", "preserve"):
        trainings.clear()
        loop = learner(replace(CONFIG, schedule=(10,), complement=complement))  # type: ignore[arg-type]
        list(loop)
        starts[complement] = trainings[-1]["start"]
        assert same(small_part(loop, starts[complement]), trainings[0]["end"])
    free = starts["zero"]["layers.2.weight"] == 0
    assert int(free.sum()) == 16 * 16 - 8 * 8
    kept, drawn = starts["keep"]["layers.2.weight"][free], starts["reinit"]["layers.2.weight"][free]
    assert torch.equal(kept, theta()["layers.2.weight"][free])
    assert (kept != drawn).all()
    assert 0.5 < drawn.std() / kept.std() < 2
    rows = list(loop.plan.kept["layers.2.weight"][0])
    preserved = starts["preserve"]["layers.2.weight"]
    assert ((preserved == 0)[rows] == free[rows]).all()  # nothing of the selector reads what it does not have
    others = [o for o in range(16) if o not in rows]
    assert torch.equal(preserved[others], theta()["layers.2.weight"][others])


class Scaled(nn.Module):
    """A network with a parameter that only itself can fill."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.layers.layers[2] = nn.Sequential(nn.Linear(16, 16), Scale())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_reinit_takes_parameters_that_nothing_resets_from_another_model_of_the_factory() -> None:
    config = replace(CONFIG, schedule=(10,), complement="reinit")
    loop = ActiveLearning(Scaled, POOL, TEST, config)
    list(loop)
    assert loop.plan is not None
    assert any(name.endswith("scale") for name in loop.plan.kept)
    assert loop.final is not None


def test_dense_is_trained_once_per_round_and_is_its_own_result(trainings: Trainings) -> None:
    loop = learner(replace(CONFIG, selector="dense"))
    rounds = list(loop)
    assert [c["samples"] for c in trainings] == [10, 16, 24]
    assert all(c["distillation"] is None for c in trainings)
    assert loop.plan is None
    for r in rounds[:-1]:
        assert r.selector_accuracy == r.final_accuracy
        assert [c.phase for c in r.costs if c.phase.startswith("train")] == ["train_selector"]
    assert [c.phase for c in rounds[-1].costs if c.phase.startswith("train")] == ["train_final"]


def test_random_needs_no_selector(trainings: Trainings) -> None:
    rounds = list(learner(replace(CONFIG, selector="dense", strategy="random")))
    phases = {c.phase for r in rounds for c in r.costs}
    assert phases == {"train_final", "evaluate"}
    assert [r.selector_accuracy for r in rounds] == [None] * 3
    trainings.clear()
    list(learner(replace(CONFIG, selector="dense", strategy="random", finals="last")))
    assert [c["samples"] for c in trainings] == [24]


def test_svp_trains_target_and_proxy_apart(trainings: Trainings) -> None:
    def proxy() -> nn.Module:
        return models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(4,))

    list(learner(replace(CONFIG, selector="model"), selector_factory=proxy))
    # At the last budget the proxy has nothing left to do.
    assert [widths(c) for c in trainings] == [[4, 10], [16, 16, 10], [4, 10], [16, 16, 10], [16, 16, 10]]
    assert all(c["distillation"] is None for c in trainings)
    proxies = [c for c in trainings if widths(c) == [4, 10]]
    assert same(proxies[0]["start"], proxies[1]["start"])


def test_finals_last_trains_only_what_selection_and_the_result_need(trainings: Trainings) -> None:
    rounds = list(learner(replace(CONFIG, finals="last")))
    assert [(c["samples"], widths(c)[0]) for c in trainings] == [(10, 8), (16, 8), (24, 8), (24, 16)]
    assert [r.final_accuracy is None for r in rounds] == [True, True, False]
    assert all(r.selector_accuracy is not None for r in rounds)


def test_the_selector_may_have_a_recipe_of_its_own(trainings: Trainings) -> None:
    quick = replace(RECIPE, batch_size=4)
    list(learner(replace(CONFIG, selector_recipe=quick)))
    assert [c["recipe"] for c in trainings] == [quick, RECIPE] * 3


@pytest.mark.parametrize("every", [False, True])
def test_no_epochs_of_the_final_training_measure_what_fusing_gives(every: bool) -> None:
    config = replace(
        CONFIG,
        complement="preserve",
        recipe=replace(RECIPE, epochs=0),
        selector_recipe=RECIPE,
        test_every_epoch=every,
    )
    done = learner(config)
    for one in done:
        assert one.final_accuracy == pytest.approx(one.selector_accuracy, abs=1e-9)
        assert not any(line.flops for line in one.costs if line.phase in ("train_final", "teacher"))


def test_a_network_that_selects_is_trained() -> None:
    with pytest.raises(
        ValueError, match=r"recipe\.epochs must be at least 1 for a network that selects, got 0"
    ):
        replace(CONFIG, recipe=replace(RECIPE, epochs=0))


def test_t_sync_prunes_the_trained_fused_network(trainings: Trainings) -> None:
    config = replace(CONFIG, schedule=(10, 16, 24, 30), t_sync=2, finals="last")
    loop = learner(config)
    plans = [(loop.plan, r) for r in loop]
    # Rounds: selector; selector and fused network (sync); selector; selector and final network.
    assert [(c["samples"], widths(c)[0]) for c in trainings] == [
        (10, 8),
        (16, 8),
        (16, 16),
        (24, 8),
        (30, 8),
        (30, 16),
    ]
    fused = trainings[2]
    assert fused["distillation"].teacher is trainings[1]["model"]
    assert plans[0][0] is plans[1][0]
    assert plans[2][0] is plans[3][0] is not plans[1][0]
    # The next selector is cut from the trained fused network and starts from its weights, round after round.
    assert same(trainings[3]["start"], small_part(loop, fused["end"]))
    assert same(trainings[4]["start"], trainings[3]["start"])
    # The last fusion is into that network: its values stay where the selector has none.
    final = trainings[5]["start"]
    assert same(small_part(loop, final), trainings[4]["end"])
    differing = sum(int((final[k] != fused["end"][k]).sum()) for k in final)
    assert differing <= sum(v.numel() for v in trainings[4]["end"].values())
    costs = [c for _, r in plans for c in r.costs]
    [sync] = [
        c
        for c in costs
        if c.network == "final" and c.round == 1 and c.phase != "evaluate" and c.phase != "fuse"
    ]
    assert sync.phase == "train_selector"
    assert "T_sync" in sync.detail
    assert [c.round for c in costs if c.phase == "plan"] == [0, 2]


def test_the_teacher_is_the_selector_trained_on_the_same_labels(trainings: Trainings) -> None:
    list(learner(replace(CONFIG, finals="last")))
    assert trainings[-1]["distillation"].teacher is trainings[-2]["model"]
    assert trainings[-2]["samples"] == 24


@pytest.mark.parametrize("factory", [models.resnet8, models.vgg11_bn])
def test_convolutional_networks_run(factory: Callable[..., nn.Module]) -> None:
    loop = ActiveLearning(
        lambda: factory(10, in_channels=1), POOL, TEST, replace(CONFIG, schedule=(10, 12), prune_ratio=0.8)
    )
    assert len(list(loop)) == 2
    assert loop.selector is not None
    assert loop.final is not None
    small, large = (sum(p.numel() for p in m.parameters()) for m in (loop.selector, loop.final))
    assert small < 0.1 * large
