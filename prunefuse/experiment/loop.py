"""The active-learning loop: train a selector on what is labeled, let it choose what to label next, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse._seeds import derive, generator, isolated
from prunefuse.data._batches import Batch, Labeled, read
from prunefuse.data._labels import OwnLabels
from prunefuse.dynamics import Recorder as Dynamics
from prunefuse.experiment import cost
from prunefuse.experiment.checks import (
    check_data,
    check_dynamics,
    check_state,
    check_test_labels,
    check_weights,
    make,
)
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.experiment.oracle import Oracle, ask
from prunefuse.experiment.recorder import Recorder
from prunefuse.experiment.records import (
    Cost,
    Epoch,
    Listener,
    Network,
    Phase,
    PhaseName,
    Progress,
    Round,
)
from prunefuse.experiment.state import Acquisition, LoopState
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, plan_pruning
from prunefuse.pruning._graph.copies import fingerprint
from prunefuse.selection._strategies import Picks, Pool, strategy
from prunefuse.training import (
    Distillation,
    EpochResult,
    Recipe,
    dropout_layers,
    evaluate,
    features,
    flops_per_input,
    predict,
    predict_dropout,
    predict_with_features,
    train,
)

__all__ = ["ActiveLearning", "LoopConfig", "LoopState"]


class ActiveLearning:
    """Pool-based active learning with a pruned, a dense or another network as selector. Iterate over it::

        learner = ActiveLearning(factory, pool, test, LoopConfig(schedule=(100, 200, 400)))
        for round in learner:
            print(round.labels, round.final_accuracy)

    Each round buys labels (the first at random), trains the selector on all labels so far from its initial
    weights, and trains the final network: for ``selector="prunefuse"`` the
    selector fused into the dense network and trained with the selector as teacher. In the last round a selector
    is trained only for that. The dense network's initial weights depend on the seed alone, so that they are the
    same for every selector and strategy.

    T_sync (see docs/paper.md): after every ``t_sync`` rounds, the fused network is trained on the labels so far and
    takes the dense network's place. Later selectors are pruned from it, start from its trained weights, and are
    fused into it.

    A sample's own label is never looked at, only what the oracle answers; pool items may be images alone. The
    pool is scored in evaluation mode, but for the dropout that a strategy asks for. Images are read as float32
    (uint8 scaled to [0, 1]), whatever the pool holds and the model computes in. Global random generators are left
    as found.

    Args:
        factory: Makes the dense network, freshly initialized from the global generators, which are seeded.
        pool: Map-style data set of candidates, read with evaluation transforms; items are images or tuples
            that start with one.
        test: Data set with items ``(image, label)``.
        config: Everything else.
        train: The samples of ``pool``, in the same order, with training augmentation; default ``pool``.
        oracle: Answers pool indices with class indices; default the labels of ``pool``.
        selector_factory: Makes the selector for ``selector="model"``, likewise.
        device: Where to compute.
        listener: Called with every `prunefuse.experiment.records.Event`.
        state: Of an earlier loop with the same arguments, to go on from; the schedule may have become longer.

    Attributes:
        state: All that has to be saved to go on later; see `LoopState`.
        plan: The current `PruningPlan`, None for other selectors than ``prunefuse``.
        selector: The selector trained last, None before.
        final: The final network trained last, None before.
        num_classes: Width of the dense network's output.
        planned: Ledger lines, with FLOPs and without seconds, of the whole run.

    Raises:
        TypeError: an argument of another kind; the message names it.
        ValueError: arguments that do not fit together; the message names them.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        pool: Any,
        test: Any,
        config: LoopConfig,
        *,
        train: Any = None,
        oracle: Oracle | None = None,
        selector_factory: Callable[[], nn.Module] | None = None,
        device: torch.device | str = "cpu",
        listener: Listener | None = None,
        state: LoopState | None = None,
    ) -> None:
        train = pool if train is None else train
        for name, data in (("pool", pool), ("train", train), ("test", test)):
            check_data(name, data)
        config = config.for_pool(len(pool))
        if len(train) != len(pool):
            raise ValueError(f"train: expected the {len(pool)} samples of the pool, got {len(train)}")
        if (selector_factory is None) == (config.selector == "model"):
            raise ValueError('selector_factory: expected one with selector="model", and only then')
        self.config = config
        self.state = LoopState() if state is None else state
        self.selector: nn.Module | None = None
        self.final: nn.Module | None = None
        self._factory = factory
        self._pool, self._train_data, self._test = pool, train, test
        if oracle is None:
            oracle = OwnLabels(pool)
            oracle.check()
        self._oracle = oracle
        self._device = torch.device(device)
        self._recorder = Recorder(listener, self._device)
        self._costs: list[Cost] = []
        self._scores: dict[str, Tensor] = {}  # of the labeled samples by preset, from the selector's training
        self._epochs: list[Epoch] = []
        [(self._example, _)] = read(pool, [Batch(torch.tensor([0]))], labels=False, device=self._device)
        self._dense = self._build(factory, "dense")
        if self._build(factory, "dense") is self._dense:
            raise ValueError("factory: expected a new model from every call, got the same one twice")
        outputs = predict(self._dense, self._example)
        if outputs.ndim != 2:
            raise ValueError(f"factory: expected a model with (N, C) logits, got {tuple(outputs.shape)}")
        self.num_classes = outputs.shape[1]
        check_test_labels(test, self.num_classes)
        check_dynamics(config, self.num_classes)
        self._proxy: nn.Module | None = None
        if selector_factory is not None:
            self._proxy = self._build(selector_factory, "proxy", name="selector_factory")
            shape = tuple(predict(self._proxy, self._example).shape)
            if shape != (1, self.num_classes):
                raise ValueError(
                    f"selector_factory: expected a model with {self.num_classes} outputs, as that of factory, "
                    f"got outputs of shape {shape} for one image"
                )
        origin = {
            "pool": len(pool),
            "seed": config.seed,
            "selector": config.selector,
            "model": fingerprint(self._dense),
        }
        check_state(self.state, origin, config)
        self.state.origin = dict(origin)
        if self.state.dense:
            check_weights("dense", self.state.dense, self._dense)
            self._dense.load_state_dict(self.state.dense)
        self._make_plan(0)
        if self.state.selector:
            check_weights("selector", self.state.selector, self._initial_selector())
        self._planning = tuple(self._costs)
        self.planned = tuple(cost.planned_costs(config, self._sizes))

    def __iter__(self) -> Iterator[Round]:
        """Run what is left of the schedule, yielding after every round."""
        for index in range(len(self.state.rounds), len(self.config.schedule)):
            done = self._round(index)
            self.state.rounds.append(done)
            self._recorder.tell(done)
            yield done

    def _round(self, index: int) -> Round:
        config, state = self.config, self.state
        self._epochs = []
        self._costs = list(self._planning) if index == 0 else []
        if len(state.acquisitions) == index:
            state.acquisitions.append(self._acquire(index))
        bought = state.acquisitions[index]
        self._costs += bought.costs
        if state.fused:
            self._dense.load_state_dict(state.fused)
            self._make_plan(index)
        selector_accuracy = final_accuracy = None
        if config.trains_selector(index):
            self.selector = self._initial_selector()
            recipe = config.training_of_selector
            selector_accuracy = self._fit(self.selector, "train_selector", "selector", index, recipe)
            if config.selector == "dense":
                self.final, final_accuracy = self.selector, selector_accuracy
        if config.trains_final(index):
            final_accuracy = self._train_final(index)
        # From here on the round is complete: only now may the state forget what a repetition would need.
        if state.fused:
            state.dense = state.fused
        state.fused = _weights(self.final) if config.syncs(index) else {}
        state.selector = _weights(self.selector) if config.keeps_selector(index) else {}
        state.scores = self._scores if config.keeps_selector(index) else {}
        return Round(
            index,
            config.sizes[index],
            bought.picks,
            bought.utilities,
            selector_accuracy,
            final_accuracy,
            bought.unselectable,
            tuple(self._epochs),
            tuple(self._costs),
        )

    def _acquire(self, index: int) -> Acquisition:
        """Choose the samples that bring the labeled set to its size in round ``index``, and ask for their labels."""
        costs: list[Cost] = []
        labeled, _ = self._labeled()
        mask = torch.ones(len(self._pool), dtype=torch.bool)
        mask[labeled] = False
        pool = Pool(mask.nonzero()[:, 0], labeled, generator(self.config.seed, "picks", index))
        picks = self._choose(pool, index, costs)
        indices = picks.indices.tolist()
        answers = ask(self._oracle, indices, self.num_classes)
        utilities = None if picks.utilities is None else tuple(picks.utilities.tolist())
        return Acquisition(tuple(indices), answers, utilities, picks.unselectable, tuple(costs))

    def _choose(self, pool: Pool, index: int, costs: list[Cost]) -> Picks:
        config, known = self.config, len(pool.labeled)
        count = config.sizes[index] - known
        chooser = strategy("random") if index == 0 else config.chooser
        if not chooser.needs:
            return chooser.pick(pool, count)
        scoring, choosing = cost.picking_flops(chooser, self._sizes, known, count)
        selector = self._initial_selector()
        recorded = chooser.dynamics is None or chooser.dynamics in self.state.scores
        if self.state.selector and recorded:
            selector.load_state_dict(self.state.selector)
            self._scores = self.state.scores
        else:  # The schedule or the strategy has changed: what was its last round trained no such selector.
            recipe = config.training_of_selector
            self._fit(selector, "train_selector", "selector", index - 1, recipe)
            costs += self._costs
            self._costs = []
        with self._recorder.phase("score_pool", "selector", index, known, scoring, costs):
            pool = self._ask(selector, pool, index)
        with self._recorder.phase("select", "selector", index, known, choosing, costs):
            return chooser.pick(pool, count)

    def _ask(self, selector: nn.Module, pool: Pool, index: int) -> Pool:
        """``pool`` with what the strategy needs to know from the selector, as tensors also for a NumPy pool."""
        config, needs = self.config, self.config.chooser.needs
        options: dict[str, Any] = {
            "indices": torch.cat((pool.labeled, pool.unlabeled))
            if "all_features" in needs
            else pool.unlabeled,
            "recipe": config.training_of_selector,
            "workers": config.workers,
            "on_progress": lambda done, total: self._recorder.tell(Progress(done, total, "scoring the pool")),
        }
        if "ensemble" in needs:
            seed = derive(config.seed, "dropout", index)
            ensemble = predict_dropout(
                selector, self._pool, passes=config.chooser.passes, seed=seed, **options
            )
            return replace(pool, ensemble=ensemble)
        if "all_features" in needs:
            scores = None if config.chooser.dynamics is None else self._scores[config.chooser.dynamics]
            if "logits" not in needs:
                seen = torch.as_tensor(features(selector, self._pool, **options))
                return replace(pool, features=seen, scores=scores)
            logits, seen = map(torch.as_tensor, predict_with_features(selector, self._pool, **options))
            return replace(pool, logits=logits[len(pool.labeled) :], features=seen, scores=scores)
        if "features" in needs:
            logits, seen = predict_with_features(selector, self._pool, **options)
            return replace(pool, logits=torch.as_tensor(logits), features=torch.as_tensor(seen))
        return replace(pool, logits=torch.as_tensor(predict(selector, self._pool, **options)))

    def _train_final(self, index: int) -> float:
        config = self.config
        final = deepcopy(self._dense)
        if config.selector == "prunefuse" and config.fuse:
            assert self.selector is not None
            assert self.plan is not None
            with self._recorder.phase("fuse", "final", index, config.sizes[index], 0.0, self._costs):
                complement: str | nn.Module = config.complement
                if complement == "reinit":
                    # Another model of the factory, so that the draw follows the architecture's own rule.
                    complement = self._build(self._factory, "complement", index)
                fuse_(final, self.selector, self.plan, complement)
        teacher = None
        if config.distills():
            assert self.selector is not None
            teacher = Distillation(self.selector, config.kd_lambda, config.kd_temperature)
        self.final = final
        phase: PhaseName = "train_selector" if config.syncs(index) else "train_final"
        return self._fit(final, phase, "final", index, config.recipe, teacher)

    def _fit(
        self,
        model: nn.Module,
        phase: PhaseName,
        network: Network,
        index: int,
        recipe: Recipe,
        distillation: Distillation | None = None,
    ) -> float:
        """Train ``model`` on all labels so far, write the ledger, and return its accuracy on the test set."""
        config, labels = self.config, self.config.sizes[index]
        per_input = self._sizes.selector if network == "selector" else self._sizes.final
        flops = cost.training_flops(recipe, labels, per_input)
        taught = 0.0
        if distillation is not None:
            taught = cost.teacher_flops(recipe, labels, self._sizes.selector)
        self._recorder.tell(Phase(index, phase, network, labels, recipe.epochs_for(labels), flops + taught))

        def on_epoch(e: EpochResult) -> None:
            rates = (e.lr, e.loss, e.train_accuracy, e.test_accuracy)
            epoch = Epoch(index, network, e.epoch, e.epochs, *rates, e.seconds)
            self._epochs.append(epoch)
            self._recorder.tell(epoch)
            if dynamics is not None:
                dynamics.end_epoch()

        dynamics: Dynamics | None = None
        if network == "selector" and config.chooser.dynamics is not None:
            score = config.chooser.dynamics
            dynamics = Dynamics(labels, (score,), classes=self.num_classes, device=self._device)
        start = time.perf_counter()
        history = train(
            model,
            Labeled(self._train_data, *self._labeled()),
            recipe,
            # The same for every network, so that arms of one seed differ by what they are, not by their order.
            seed=derive(config.seed, "train", index),
            distillation=distillation,
            test=self._test if config.test_every_epoch else None,
            workers=config.workers,
            on_batch=None if dynamics is None else dynamics.update,
            on_epoch=on_epoch,
        )
        if dynamics is not None:
            self._scores = {score: dynamics.scores()[score].cpu()}
        elapsed = time.perf_counter() - start
        training = sum(e.seconds for e in history)
        teaching = sum(e.teacher_seconds for e in history)
        if config.syncs(index) and network == "final":
            detail = "T_sync: the fused network that the next selector is cut from, with its teacher"
            self._costs.append(Cost(phase, network, index, labels, flops + taught, training, detail))
        else:
            self._costs.append(Cost(phase, network, index, labels, flops, training - teaching))
            if distillation is not None:
                self._costs.append(Cost("teacher", "selector", index, labels, taught, teaching))
        tested = cost.test_flops(config, recipe, labels, per_input, self._sizes)
        accuracy = history[-1].test_accuracy
        if accuracy is not None:
            self._costs.append(Cost("evaluate", network, index, labels, tested, elapsed - training))
            return accuracy
        with self._recorder.phase("evaluate", network, index, labels, tested, self._costs):
            return evaluate(model, self._test, recipe=recipe, workers=config.workers)

    def _make_plan(self, index: int) -> None:
        """Plan the pruning of the dense network as it is now, and count what its networks cost."""
        config = self.config
        self.plan: PruningPlan | None = None
        if config.selector == "prunefuse":
            with self._recorder.phase("plan", "selector", index, config.sizes[index], 0.0, self._costs):
                self.plan = plan_pruning(
                    self._dense,
                    (self._example,),
                    ratio=config.prune_ratio,
                    criterion=config.criterion,
                    rounding=config.rounding,
                    seed=config.seed,
                )
        selector = self._initial_selector()
        needs = config.chooser.needs
        if "ensemble" in needs and not dropout_layers(selector):
            raise ValueError(
                "strategy: expected a selector with dropout layers for dropout passes, it has none"
            )
        compared = 0
        if needs & {"features", "all_features"}:
            logits, seen = predict_with_features(selector, self._example)
            compared = seen.shape[1] + ("logits" in needs) * logits.shape[1]
        self._sizes = cost.Sizes(
            flops_per_input(selector, self._example),
            flops_per_input(self._dense, self._example),
            compared,
            len(self._pool),
            len(self._test),
        )

    def _initial_selector(self) -> nn.Module:
        if self.plan is not None:
            return self.plan.extract(self._dense)
        return deepcopy(self._dense if self._proxy is None else self._proxy)

    def _build(
        self, factory: Callable[[], nn.Module], *purpose: str | int, name: str = "factory"
    ) -> nn.Module:
        with isolated(derive(self.config.seed, *purpose), self._device):
            return make(name, factory).to(self._device)

    def _labeled(self) -> tuple[Tensor, Tensor]:
        """Indices and labels of all labeled samples, in the order they were bought."""
        bought = self.state.acquisitions
        indices = torch.tensor([i for a in bought for i in a.picks], dtype=torch.int64)
        return indices, torch.tensor([y for a in bought for y in a.labels], dtype=torch.int64)


def _weights(model: nn.Module | None) -> dict[str, Tensor]:
    """A copy of the weights and buffers, on the CPU."""
    assert model is not None
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()
    }
