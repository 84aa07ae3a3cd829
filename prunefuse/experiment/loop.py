"""The active-learning loop: train a selector on what is labeled, let it choose what to label next, repeat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunefuse._lock import locked
from prunefuse._seeds import derive, generator, isolated
from prunefuse.data._batches import Batch, Labeled, read
from prunefuse.data._labels import OwnLabels
from prunefuse.dynamics import Recorder as Dynamics
from prunefuse.errors import FolderInUseError, TooFewRowsError
from prunefuse.experiment import people, rounds, stopping, trial
from prunefuse.experiment.answers import decoded, encoded
from prunefuse.experiment.checks import (
    candidates_of,
    check_data,
    check_dynamics,
    check_features_from,
    check_state,
    check_test_labels,
    check_training,
    check_weights,
    excluded,
    given_features,
    make,
    names_of,
    own_metrics,
    starting_from,
)
from prunefuse.experiment.cost import Sizes
from prunefuse.experiment.cut import Cut, cut, restored
from prunefuse.experiment.looking import looked_at, width_of_features
from prunefuse.experiment.loop_config import REFITTED, LoopConfig
from prunefuse.experiment.oracle import Oracle, ask, check_labels
from prunefuse.experiment.people import Asked, Labels
from prunefuse.experiment.records import Cost, Epoch, Event, Listener, Network, Round, Stop
from prunefuse.experiment.state import Acquisition, LoopState
from prunefuse.experiment.steps import Bench, Result, Step, carry_out, clear
from prunefuse.pruning import PruningPlan
from prunefuse.pruning._graph.copies import fingerprint
from prunefuse.selection._part import random_part
from prunefuse.selection._strategies import Picks, Pool
from prunefuse.tasks import SingleLabel
from prunefuse.training import (
    Distillation,
    EpochResult,
    best_epoch,
    dropout_layers,
    flops_per_input,
    measure,
    train,
)
from prunefuse.training._graphs import check_device
from prunefuse.training._modes import reading_for
from prunefuse.training._predict import Collate, first_of, outputs_of, task_targets
from prunefuse.training._recipe import Recipe
from prunefuse.training._starts import shrink_and_perturb_
from prunefuse.training._train import most_taught_once

__all__ = ["ActiveLearning", "LoopConfig", "LoopState"]

Metrics = Mapping[str, Any]
Fit = Callable[..., None]
"""``fit(model, data, *, device, seed, teacher=None)``: train the model in place on items ``(input, label)``."""
Evaluate = Callable[..., "float | Metrics"]
"""``evaluate(model, data, *, device)``: one number, or several by name, the first of which is told."""


class ActiveLearning:
    """Pool-based active learning with a pruned, a dense or another network as selector; an iterator over rounds.

    >>> data = prunefuse.data.load("digits")
    >>> config = prunefuse.LoopConfig(schedule=(20, 30), recipe=prunefuse.Recipe(epochs=1, batch_size=8, lr=0.05))
    >>> factory = lambda: prunefuse.models.mlp(10, in_channels=1, image_size=(8, 8), hidden=(16, 16))
    >>> learner = prunefuse.ActiveLearning(factory, data.pool, data.test, config, train=data.train)
    >>> [(round.labels, len(round.picks)) for round in learner]
    [(20, 20), (30, 10)]

    Each round buys labels (the first at random), trains the selector on all labels so far from its initial weights, and
    trains the final network. For ``selector="prunefuse"`` the final network is the selector fused into the dense network,
    trained with the selector as teacher. In the last round a selector is trained only for that. The dense network's initial
    weights depend on the seed alone, so they are the same for every selector and strategy.

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
        test: Data set with items ``(image, label)``; None is no test, and accuracies are None.
        config: Everything else.
        train: The samples of ``pool``, in the same order, with training augmentation; default ``pool``.
        oracle: Answers pool indices with class indices; default the labels of ``pool``. With ``"people"`` labels come by `ask`
            and `tell`.
        labeled: Labels that there are before the start, class by pool index: they are the first size of the schedule.
        exclude: Samples of the pool that are never picked: indices, or a mask.
        features: (N, d) floating: what strategies that compare features take for those of the pool, such as embeddings
            that were learned without labels. No network is asked then.
        ids: What each sample of the pool is called, for `ask` and ``picks.csv``: paths, say.
        classes: What each class is called, for ``picks.csv``.
        selector_factory: Makes the selector for ``selector="model"``, likewise.
        collate: From a list of items to a batch, as a ``DataLoader`` takes it: a mapping with labels, a pair, or inputs.
        fit: A training of one's own, instead of the recipe's: ``fit(model, data, *, device, seed, teacher=None)`` trains the
            model in place, on items with the labels that were bought. ``teacher`` is the selector, where there is
            distillation. Such a training is one step: after a kill it starts anew. Its FLOPs are not in the ledger.
        evaluate: Likewise ``evaluate(model, data, *, device)`` of the test set: a number, or several by name.
        device: Where to compute.
        listener: Called with every `prunefuse.experiment.records.Event`.
        state: Of an earlier loop with the same arguments, to go on from. The schedule may have become longer, and the pool may
            have grown at its end.
        folder: Where rounds are kept (see `prunefuse.experiment.trial`), new or of an earlier loop with the same
            arguments. A loop that was killed goes on from there, also from inside a round and a training. Its picks are
            the same and, on the CPU, its weights bit for bit.
        checkpoint_seconds: With ``folder``: a training is kept at the end of the first epoch that ends so long after the
            last time.

    Attributes:
        state: All that has to be saved to go on later; see `LoopState`.
        plan: The current `PruningPlan`, None for other selectors than ``prunefuse``.
        selector: The selector trained last, None before.
        final: The final network trained last, None before.
        num_classes: Width of the dense network's output: classes, labels, or numbers to predict.
        planned: Ledger lines, with FLOPs and without seconds, of the whole run.
        shared: From the name of a step to the folder where other loops with the same step find what it found, or None.

    Raises:
        TypeError: an argument of another kind; the message names it.
        ValueError: arguments that do not fit together; the message names them.
        DamagedFileError: a file of ``folder`` is not what was written.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        pool: Any,
        test: Any,
        config: LoopConfig,
        *,
        train: Any = None,
        oracle: Oracle | Literal["people"] | None = None,
        labeled: Mapping[int, int] | None = None,
        exclude: Any = None,
        features: Any = None,
        ids: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        selector_factory: Callable[[], nn.Module] | None = None,
        collate: Collate | None = None,
        fit: Fit | None = None,
        evaluate: Evaluate | None = None,
        device: torch.device | str = "cpu",
        listener: Listener | None = None,
        state: LoopState | None = None,
        folder: Path | str | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        train = pool if train is None else train
        for name, data in (("pool", pool), ("train", train), ("test", test)):
            if name != "test" or test is not None:
                check_data(name, data)
        config = config.for_pool(len(pool))
        if labeled is not None:
            config = starting_from(config, labeled, len(pool))
        self._excluded = excluded(exclude, config, len(pool))
        self._candidates = candidates_of(config, len(pool))
        config, self._features = given_features(features, config, len(pool))
        check_features_from(config)
        if len(train) != len(pool):
            raise ValueError(f"train must have the {len(pool)} samples of the pool, got {len(train)}")
        if (selector_factory is None) == (config.selector == "model"):
            raise ValueError(
                'selector_factory must be given with selector="model", and only then: '
                f"got {'none' if selector_factory is None else 'one'} with selector={config.selector!r}"
            )
        if state is not None and folder is not None:
            raise ValueError("state must be None with a folder, which has its own, got both")
        self.config = config
        self.shared: Callable[[str], Path | None] | None = None
        self.folder = None if folder is None else Path(folder)
        self._identity: dict[str, Any] = {}
        if self.folder is not None:
            self._identity = trial.identity(config, pool, test, self._features)
            state = trial.restore(self.folder, self._identity, pool)
            self._version = trial.version(self.folder)
        self.state = LoopState() if state is None else state
        self.selector: nn.Module | None = None
        self.final: nn.Module | None = None
        self._sizes: Sizes
        self._factory = factory
        self._pool, self._train_data, self._test = pool, train, test
        self._task, self._collate = config.learns, collate
        self._own_fit, self._own_evaluate = fit, evaluate
        self._targets = task_targets(self._task)
        check_training(config, fit, evaluate)
        if oracle is None:
            oracle = OwnLabels(pool, self._targets)
            oracle.check()
        self._oracle = None if oracle == "people" else oracle
        self._device = torch.device(device)
        for recipe in (config.recipe, config.training_of_selector):
            check_device(recipe, self._device)
        self._listener = listener
        self._checkpoint_seconds = checkpoint_seconds
        self._scores: dict[str, Tensor] = {}  # of the labeled samples by preset, from the selector's training
        self._dense = self._build(factory, "dense")
        self._example = self._first(self._dense)
        if self._build(factory, "dense") is self._dense:
            raise ValueError("factory must make a new model in every call, got the same one twice")
        outputs = outputs_of(self._dense, self._example, self._task)
        self.num_classes = self._task.width(outputs)
        self._taught_once = most_taught_once(self._train_data, self._collate, lambda: outputs)
        if test is not None and evaluate is None:
            check_test_labels(test, self.num_classes, self._task)
        self._names = names_of(ids, classes, len(pool), self.num_classes, self._task)
        check_dynamics(config, self.num_classes)
        self._proxy: nn.Module | None = None
        if selector_factory is not None:
            self._proxy = self._build(selector_factory, "proxy", name="selector_factory")
            outputs = outputs_of(self._proxy, self._example, self._task)
            if self._task.width(outputs) != self.num_classes:
                shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise ValueError(
                    f"selector_factory must make a model with {self.num_classes} outputs, as that of factory, "
                    f"got outputs of shape {shape} for one sample"
                )
        origin = {
            "pool": len(pool),
            "seed": config.seed,
            "selector": config.selector,
            "model": fingerprint(self._dense),
        }
        if labeled is not None:
            origin["labeled"] = len(labeled)
            if not self.state.acquisitions:
                asked = (list(labeled), list(labeled.values()), self.num_classes, self._task)
                answers = check_labels("labeled", *asked)
                self.state.acquisitions.append(Acquisition(tuple(labeled), answers, None, 0, ()))
        if self.state.stopped is not None:
            if config.stop:
                self.config = config = replace(config, schedule=config.sizes[: self.state.stopped])
            self.state.stopped = self.state.stopped if config.stop else None
        check_state(self.state, origin, config)
        self.state.origin = dict(origin)
        if self.state.dense:
            check_weights("dense", self.state.dense, self._dense)
            self._dense.load_state_dict(self.state.dense)
        bench = self._bench(None)
        known = restored(self.state.plan, self.state.cut) if self.state.plan and self._refits else None
        self._make_plan(0, bench, known)
        if self.state.selector:
            check_weights("selector", self.state.selector, self._initial_selector())
        self._planning = tuple(bench.lines)
        self.planned = tuple(rounds.planned_costs(config, self._sizes))

    def __iter__(self) -> Iterator[Round]:
        """Run what is left of the schedule, yielding after every round."""
        if self._oracle is None:
            raise ValueError('oracle must answer where a loop is iterated, got "people": call ask and tell')
        with self._held():
            while (index := len(self.state.rounds)) < len(self.config.schedule):
                done = self._complete(index)
                if done is not None:
                    yield done

    def ask(self) -> Asked:
        """The samples to label next, best first; those that were asked and not told yet come before new ones.

        >>> images = torch.rand(60, 1, 8, 8)
        >>> factory = lambda: prunefuse.models.mlp(2, in_channels=1, image_size=(8, 8), hidden=(8,))
        >>> config = prunefuse.LoopConfig(schedule=(4, 8), recipe=prunefuse.Recipe(epochs=1, batch_size=4, lr=0.05))
        >>> learner = prunefuse.ActiveLearning(factory, images, None, config, oracle="people")
        >>> while (asked := learner.ask()).indices:
        ...     learner.tell([int(images[index].mean() > 0.5) for index in asked.indices])
        >>> [round.labels for round in learner.state.rounds]
        [4, 8]

        Where all labels of a round are there, the round is completed first: its networks are trained. Samples of which
        `tell` said that nobody can tell are replaced by the next best. With ``folder``, another process may tell, or ask on.

        Returns:
            Indices and utilities. None are left when the schedule is done.

        Raises:
            ValueError: the loop has an oracle that answers.
            FolderInUseError: with ``folder``: another process is at it, or has gone on in it since this loop was made.
        """
        if self._oracle is not None:
            raise ValueError('oracle must be "people" where a loop is asked, got one that answers')
        state, sizes = self.state, self.config.sizes
        with self._held():
            if len(state.acquisitions) > len(state.rounds):
                self._complete(len(state.rounds))
            if len(state.rounds) == len(sizes):
                return self._asked()
            if (count := people.missing(state, sizes)) > 0:
                self._pick_for_people(len(state.rounds), count)
                self._commit()
            return self._asked()

    def _asked(self) -> Asked:
        found, ids = people.asked(self.state), self._names.ids
        named = None if ids is None else tuple(ids[index] for index in found.indices)
        return replace(found, ids=named, stop=self._proposed(len(self.state.rounds)) if found.indices else ())

    def tell(self, labels: Labels) -> None:
        """Take labels of samples that `ask` gave, in any number, also again: the last word counts.

        With ``folder`` they are on the disk when this returns. Labels of earlier rounds can be corrected, too: what is
        trained from then on is trained with them.

        Args:
            labels: Class by pool index; or a class for each sample that `ask` would give now, in that order. None says that
                nobody can tell: such a sample is not asked again.

        Raises:
            ValueError: an index that was not asked, or a label that is no class; nothing is taken then.
            TypeError: a label is not a whole number.
        """
        if self._oracle is not None:
            raise ValueError('oracle must be "people" where a loop is told, got one that answers')
        with self._held():
            corrected = people.take(self.state, labels, self.config.sizes, self.num_classes, self._task)
            self._commit()
            if corrected:
                self._clear_steps()  # trained with what was said before

    def trained_selector(self) -> nn.Module:
        """The selector trained last, made anew from the weights in `state`, which a process that goes on has, too."""
        selector = self._initial_selector()
        selector.load_state_dict(self.state.selector)
        return selector

    def _pick_for_people(self, index: int, count: int) -> None:
        """Choose samples for people, beside those that they were asked and those that nobody can tell."""
        state = self.state
        before = [] if state.pending is None else state.pending.picks
        step, *_ = rounds.steps_of_round(self.config, index, self._sizes)
        bench = self._bench(None)
        labeled, answers = self._labeled()
        mask = torch.ones(len(self._pool), dtype=torch.bool)
        for taken in (labeled.tolist(), before, state.unclear):
            mask[torch.tensor(taken, dtype=torch.int64)] = False
        mask[self._excluded] = False
        if int(mask.sum()) < count:
            raise ValueError(
                f"schedule must leave {count} samples to ask for, got {int(mask.sum())}: of {len(state.unclear)} "
                "nobody can tell"
            )
        purpose = ("picks", index, len(before)) if before else ("picks", index)
        source = generator(self.config.seed, *purpose)
        pool = self._unlabeled(mask, labeled, answers, source)
        chosen = self._choose(pool, index, count, step, bench)
        self._take_signals(index, chosen.signals, chosen.classes)
        if chosen.picks is None:
            self._stop(index, tuple(bench.lines), chosen.epochs)
        else:
            self._propose(index)
            people.add(state, chosen.picks, bench.lines)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Have the folder, if there is one, for this process alone."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, patience=10.0):  # a process that had it may be dying at this moment
            if trial.version(self.folder) != self._version:
                raise FolderInUseError(
                    f"folder must be as this loop left it, got one in which another went on: make the loop of "
                    f"{self.folder} anew"
                )
            yield

    def _commit(self) -> None:
        if self.folder is not None:
            trial.commit(
                self.folder, self._identity, self.state, self.plan, self.selector, self.final, self._names
            )
            self._version = trial.version(self.folder)

    def _clear_steps(self) -> None:
        if self.folder is not None:
            clear(self.folder / trial.STEPS)

    def _complete(self, index: int) -> Round | None:
        """Do a round, and keep it; None where the loop stops instead."""
        done = self._round(index)
        if done is None:
            return None
        self.state.rounds.append(done)
        self._commit()
        self._clear_steps()
        self._tell(done)
        return done

    def do(self, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        """Do a step of a round; called by `prunefuse.experiment.steps.carry_out`."""
        index = int(step.name.partition("/")[0])
        return {
            "label": self._label,
            "plan": self._replan,
            "train_selector": self._train_selector,
            "train_final": self._train_final,
        }[step.what](index, step, bench)

    def take(self, step: Step[Cost], result: Result[Cost]) -> None:
        """Take what a step found, now or in an earlier process."""
        index, values = int(step.name.partition("/")[0]), result.values
        if step.what == "label":
            self._take_signals(index, values["signals"], result.tensors.get("classes"))
        if step.what == "label" and values["picks"] is not None:
            utilities = None if values["utilities"] is None else tuple(values["utilities"])
            labels = tuple(map(decoded, values["labels"]))
            bought = (tuple(values["picks"]), labels, utilities, values["unselectable"])
            self.state.acquisitions.append(Acquisition(*bought, result.lines))
        elif step.what == "plan" and not self._planned_now:
            known = restored(values["cut"], result.tensors) if "cut" in values else None
            self._load_fused(index, self._bench(None), known)
        elif step.what == "train_selector":
            weights, scores = (
                {name.removeprefix(part): t for name, t in result.tensors.items() if name.startswith(part)}
                for part in ("weights.", "scores.")
            )
            if self._selector_of != index:
                self.selector = self._initial_selector()
                self.selector.load_state_dict(weights)
            self._scores = scores
            if self.config.selector == "dense":
                self.final = self.selector
        elif step.what == "train_final" and self._final_of != index:
            self.final = deepcopy(self._dense)
            self.final.load_state_dict(dict(result.tensors))

    def _round(self, index: int) -> Round | None:
        config, state = self.config, self.state
        lines = list(self._planning) if index == 0 else []
        epochs: list[Epoch] = []
        accuracies: dict[str, float | None] = {"train_selector": None, "train_final": None}
        metrics: dict[str, Metrics] = {}
        self._selector_of = self._final_of = -1
        self._planned_now = False
        label, *_ = rounds.steps_of_round(config, index, self._sizes)
        if len(state.acquisitions) == index:
            found = self._carry_out(label)
            if found.values["picks"] is None:
                self._stop(index, found.lines, found.values["epochs"])
                return None
            self._propose(index)
            epochs += [Epoch(**epoch) for epoch in found.values["epochs"]]
        lines += state.acquisitions[index].costs
        if state.fused or (index == 0 and self._refits):
            lines += self._carry_out(rounds.plan_step(config, index, self._sizes)).lines
        # Asked for again, as the networks have other sizes once the dense one is pruned anew.
        for step in rounds.steps_of_round(config, index, self._sizes):
            if step.what in ("label", "plan"):
                continue
            found = self._carry_out(step)
            lines += found.lines
            epochs += [Epoch(**epoch) for epoch in found.values["epochs"]]
            accuracies[step.what] = found.values["accuracy"]
            metrics |= _metrics_of(step, found)
        bought = state.acquisitions[index]
        # From here on the round is complete: only now may the state forget what a repetition would need.
        if state.fused:
            state.dense = state.fused
        if self._cut is not None and self._refits:
            state.plan, state.cut = self._cut.kept()
        state.fused = _weights(self.final) if rounds.syncs(config, index) else {}
        kept = rounds.keeps_selector(config, index)
        state.selector = _weights(self.selector) if kept else {}
        state.scores = self._scores if kept else {}
        if rounds.goes_on_from_final(config, index):
            state.selector = _weights(self.final)
        trained = accuracies["train_selector"]
        one = config.selector == "dense" and trained is not None
        final = trained if one else accuracies["train_final"]
        if one and "selector" in metrics:
            metrics["final"] = metrics["selector"]
        return Round(
            index,
            config.sizes[index],
            bought.picks,
            bought.utilities,
            trained,
            final,
            bought.unselectable,
            tuple(epochs),
            tuple(lines),
            state.signals.get(index, {}),
            metrics,
        )

    def _take_signals(self, index: int, signals: Mapping[str, float], classes: Tensor | None) -> None:
        """Keep what stopping rules look at."""
        if signals:
            self.state.signals[index] = dict(signals)
        if classes is not None:
            self.state.classes = {"predicted": classes.cpu()}

    def _proposed(self, index: int) -> tuple[str, ...]:
        """The stopping rules that hold before round ``index``."""
        signals = [self.state.signals.get(before, {}) for before in range(index + 1)]
        return stopping.proposing(self.config.stop_when, signals)

    def _propose(self, index: int) -> None:
        """Tell of rules that hold, where the loop is not to stop by itself."""
        if rules := self._proposed(index):
            self._tell(Stop(index - 1, self.config.sizes[index - 1], rules, stopped=False))

    def _stop(self, index: int, lines: Sequence[Cost], epochs: Sequence[Mapping[str, Any]]) -> None:
        """End the loop before round ``index``. What the last round trains is trained at the size that was reached."""
        state, rules = self.state, self._proposed(index)
        last = state.rounds[-1]
        trained = {step.what for step in rounds.steps_of_round(self.config, index - 1, self._sizes)}
        self.config = replace(self.config, schedule=self.config.sizes[:index])
        if state.selector and self.config.selector != "dense":
            self.selector = self.trained_selector()
        spent, seen = [*last.costs, *lines], [*last.epochs, *(Epoch(**epoch) for epoch in epochs)]
        accuracies = {"train_selector": last.selector_accuracy, "train_final": last.final_accuracy}
        metrics = dict(last.metrics)
        self._selector_of = self._final_of = -1
        for step in rounds.steps_of_round(self.config, index - 1, self._sizes):
            one = self.config.selector == "dense" and "train_selector" in trained  # it is the final network
            if step.what in accuracies and step.what not in trained and not one:
                found = self._carry_out(step)
                spent += found.lines
                seen += [Epoch(**epoch) for epoch in found.values["epochs"]]
                accuracies[step.what] = found.values["accuracy"]
                metrics |= _metrics_of(step, found)
        state.rounds[-1] = replace(
            last,
            selector_accuracy=accuracies["train_selector"],
            final_accuracy=accuracies["train_final"],
            epochs=tuple(seen),
            costs=tuple(spent),
            metrics=metrics,
        )
        state.stopped = index
        self._commit()
        self._clear_steps()
        self._tell(Stop(index - 1, last.labels, rules, stopped=True))

    def _carry_out(self, step: Step[Cost]) -> Result[Cost]:
        return carry_out(step, self, self._bench(step), Cost)

    def _bench(self, step: Step[Cost] | None) -> Bench[Cost]:
        folder = None
        if self.folder is not None and step is not None:
            folder = self.folder / trial.STEPS / step.name
        shared = None if step is None or self.shared is None else self.shared(step.name)
        return Bench(
            folder=folder,
            shared=shared,
            listener=self._listener,
            device=self._device,
            checkpoint_seconds=self._checkpoint_seconds,
        )

    def _label(self, index: int, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        """Choose the samples that bring the labeled set to its size in round ``index``, and ask for their labels."""
        labeled, known = self._labeled()
        mask = torch.ones(len(self._pool), dtype=torch.bool)
        mask[labeled] = False
        mask[self._excluded] = False
        source = generator(self.config.seed, "picks", index)
        pool = self._unlabeled(mask, labeled, known, source)
        count = self.config.sizes[index] - len(labeled)
        chosen = self._choose(pool, index, count, step, bench)
        picks, tensors = chosen.picks, {} if chosen.classes is None else {"classes": chosen.classes}
        told = {"signals": chosen.signals, "epochs": chosen.epochs}
        if picks is None:
            return Result({"picks": None, **told}, tensors)
        indices = picks.indices.tolist()
        assert self._oracle is not None
        answers = ask(self._oracle, indices, self.num_classes, self._task)
        utilities = None if picks.utilities is None else picks.utilities.tolist()
        return Result(
            {
                "picks": indices,
                "labels": list(map(encoded, answers)),
                "utilities": utilities,
                "unselectable": picks.unselectable,
                **told,
            },
            tensors,
        )

    def _unlabeled(self, mask: Tensor, labeled: Tensor, answers: Any, source: torch.Generator) -> Pool:
        """What is chosen from: the samples of a mask."""
        pool = Pool(mask.nonzero()[:, 0], labeled, source, classes=self.num_classes)
        needs_answers = "answers" in self.config.chooser.needs and len(labeled)
        return replace(pool, answers=self._targets.targets(answers)) if needs_answers else pool

    def _choose(self, pool: Pool, index: int, count: int, step: Step[Cost], bench: Bench[Cost]) -> _Chosen:
        """The samples that bring the labeled set to its size, or none where a rule stops the loop."""
        config, known = self.config, len(pool.labeled)
        epochs: list[dict[str, Any]] = []
        chooser, asks = config.chooser_of(index), config.asks(index)
        signals = {} if index == 0 else self._cost_of(index)
        if self._stops(index, signals):
            return _Chosen(None, epochs, signals)
        if chooser.needs and self._candidates is not None:
            source = generator(config.seed, "candidates", index)
            part = random_part(len(pool.unlabeled), self._candidates, generator=source)
            pool = replace(pool, unlabeled=pool.unlabeled[part])
        if not chooser.needs:
            return _Chosen(chooser.pick(pool, count), epochs, signals)
        selector = self._initial_selector()
        recorded = chooser.dynamics is None or chooser.dynamics in self.state.scores
        if index == 0 or not asks:
            pass  # untrained, or not asked
        elif self.state.selector and recorded:
            selector.load_state_dict(self.state.selector)
            self._scores = self.state.scores
        else:  # The schedule or the strategy has changed: what was its last round trained no such selector.
            work = rounds.training_lines(config, index - 1, known, self._sizes, "selector")
            _, epochs = self._fit(selector, "selector", index - 1, work, bench)
        with bench.timed(step.line("score_pool")):
            pool = looked_at(
                selector,
                self._pool,
                pool,
                chooser,
                asks,
                given=self._features,
                module=config.features_from,
                scores=self._scores,
                seed=derive(config.seed, "dropout", index),
                recipe=config.training_of_selector,
                workers=config.workers,
                on_progress=bench.progress("scoring the pool"),
                task=self._task,
                collate=self._collate,
            )
        with bench.timed(step.line("select")):
            classes = None
            if self._looks and index not in self.state.signals:
                before = self.state.classes.get("predicted")
                measured = stopping.measure(pool, len(self._pool), before)
                signals, classes = {**signals, **measured.signals}, measured.classes
            if self._stops(index, signals):
                return _Chosen(None, epochs, signals, classes)
            try:
                return _Chosen(chooser.pick(pool, count), epochs, signals, classes)
            except TooFewRowsError as error:
                left = len(pool.unlabeled)
                raise ValueError(
                    f"strategy: {count} samples are to be picked to reach {config.sizes[index]} labels, but only "
                    f"{min(error.selectable, left)} of {left} can be: what the strategy is given or gives is NaN or "
                    "infinite for the others"
                ) from error

    def _cost_of(self, index: int) -> dict[str, float]:
        """FLOPs of all rounds so far and of round ``index``, where a rule looks at them."""
        if not any(rule.startswith("cost:") for rule in self.config.stop_when):
            return {}
        spent = sum(cost.flops for done in self.state.rounds for cost in done.costs)
        steps = rounds.steps_of_round(self.config, index, self._sizes)
        return {"cost": spent + sum(line.flops for step in steps for line in step.work)}

    def _stops(self, index: int, signals: Mapping[str, float]) -> bool:
        """Whether the loop is to stop before round ``index``, given what was measured now or before it was stopped."""
        known = self.state.signals
        found = [known.get(before, {}) for before in range(index)] + [{**signals, **known.get(index, {})}]
        return self.config.stop and bool(stopping.proposing(self.config.stop_when, found))

    @property
    def _looks(self) -> bool:
        """Whether stopping rules look at what the selector says."""
        return any(not rule.startswith("cost:") for rule in self.config.stop_when)

    def _replan(self, index: int, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        if index:
            self._load_fused(index, bench)
        self._planned_now = True
        if self._cut is None or not self._refits:
            return Result()
        # Kept, as on another machine the last bits of a calibration could choose other channels.
        told, weights = self._cut.kept()
        return Result({"cut": told}, weights)

    def _load_fused(self, index: int, bench: Bench[Cost], known: Cut | None = None) -> None:
        """After T_sync: the fused network takes the dense one's place, and is pruned anew, unless that is known."""
        if index:
            self._dense.load_state_dict(self.state.fused)
        self._make_plan(index, bench, known)

    def _train_selector(self, index: int, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        self.selector = self._starting_selector(index)
        metrics, epochs = self._fit(self.selector, "selector", index, step.work, bench)
        self._selector_of = index
        tensors = {f"weights.{name}": value for name, value in _weights(self.selector).items()}
        tensors |= {f"scores.{name}": value for name, value in self._scores.items()}
        return Result(_told(metrics, epochs), tensors)

    def _train_final(self, index: int, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        config = self.config
        final = self._starting_selector(index) if config.selector == "dense" else deepcopy(self._dense)
        factors = None
        if config.selector == "prunefuse" and config.fuse:
            assert self.selector is not None
            assert self._cut is not None
            with bench.timed(Cost("fuse", "final", index, config.sizes[index], 0.0, 0.0)):
                complement: str | nn.Module = config.complement
                if complement == "reinit":
                    # Another model of the factory, so that the draw follows the architecture's own rule.
                    complement = self._build(self._factory, "complement", index)
                self._cut.fuse_(final, self.selector, complement)
                if config.shrink_fused:
                    source = generator(config.seed, "fused", index)
                    shrink_and_perturb_(final, config.shrink_to, config.noise, source)
                if config.fused_lr != 1:
                    factors = self._cut.lr_factors(final, config.fused_lr)
        teacher = None
        if config.distills():
            assert self.selector is not None
            teacher = Distillation(
                self.selector, config.kd_lambda, config.kd_temperature, config.kd_annealing
            )
        metrics, epochs = self._fit(final, "final", index, step.work, bench, teacher, factors)
        self.final, self._final_of = final, index
        return Result(_told(metrics, epochs), _weights(final) if bench.folder else {})

    def _fit(
        self,
        model: nn.Module,
        network: Network,
        index: int,
        work: tuple[Cost, ...],
        bench: Bench[Cost],
        distillation: Distillation | None = None,
        lr_factors: Mapping[str, Tensor] | None = None,
    ) -> tuple[Metrics | None, list[dict[str, Any]]]:
        """Train ``model`` on all labels so far, write the ledger, and return its metrics on the test set, and the epochs."""
        config = self.config
        recipe = config.training_of_selector if network == "selector" else config.recipe
        training = work[0]
        teaching = [line for line in work if line.phase == "teacher"]
        testing = next((line for line in work if line.phase == "evaluate"), None)
        data = Labeled(self._train_data, *self._labeled(), self._targets)
        # The same for every network, so that arms of one seed differ by what they are, not by their order.
        seed = derive(config.seed, "train", index)
        if self._own_fit is not None:
            bench.begin(training, 0, 0.0)
            with bench.timed(training), isolated(seed, self._device):
                teacher = None if distillation is None else distillation.teacher
                self._own_fit(model, data, device=self._device, seed=seed, teacher=teacher)
            return self._tested(model, recipe, testing, bench), []
        bench.begin(training, recipe.epochs_for(training.labels), sum(line.flops for line in teaching))

        def on_epoch(result: EpochResult) -> None:
            if dynamics is not None:
                dynamics.end_epoch()
            here.append(result.seconds)
            bench.tell(self._epoch(index, network, result))

        here: list[float] = []  # seconds of the epochs that are not of an earlier process
        dynamics: Dynamics | None = None
        if network == "selector" and config.chooser.dynamics is not None:
            score = config.chooser.dynamics
            dynamics = Dynamics(training.labels, (score,), classes=self.num_classes, device=self._device)
        start = time.perf_counter()
        history = train(
            model,
            data,
            recipe,
            seed=seed,
            distillation=distillation,
            test=self._test if config.test_every_epoch else None,
            workers=config.workers,
            on_batch=None if dynamics is None else dynamics.update,
            on_epoch=on_epoch,
            checkpoint=bench.checkpoint(dynamics),
            task=self._task,
            collate=self._collate,
            plain=Labeled(self._pool, *self._labeled(), self._targets),
            lr_factors=lr_factors,
        )
        if dynamics is not None:
            self._scores = {score: dynamics.scores()[score].cpu()}
        tested = time.perf_counter() - start - sum(here) if config.test_every_epoch else None
        trained = sum(e.seconds for e in history)
        taught = sum(e.teacher_seconds for e in history)
        part = (
            len(history) / history[-1].epochs if history else 1.0
        )  # less than all where training stopped early
        if part < 1:
            training = replace(training, flops=training.flops * part)
            if training.labels > self._taught_once:  # else the teacher had said all before
                teaching = [replace(line, flops=line.flops * part) for line in teaching]
        if teaching:
            bench.charge(training, trained - taught)
            bench.charge(teaching[0], taught)
        elif distillation is not None:
            bench.charge(training, trained, detail=rounds.SYNC)
        else:
            bench.charge(training, trained)
        epochs = [asdict(self._epoch(index, network, result)) for result in history]
        if testing is None or tested is None or not history:
            return self._tested(model, recipe, testing, bench), epochs
        metrics: Metrics | None = best_epoch(history).test_metrics  # of the weights that the training left
        if metrics is None or self._own_evaluate is not None:
            metrics = self._measured(model, recipe)
        bench.charge(testing, tested)
        return metrics, epochs

    def _tested(
        self, model: nn.Module, recipe: Recipe, line: Cost | None, bench: Bench[Cost]
    ) -> Metrics | None:
        """Metrics on the test set, where there is one."""
        if line is None:
            return None
        with bench.timed(line):
            return self._measured(model, recipe)

    def _measured(self, model: nn.Module, recipe: Recipe) -> Metrics:
        if self._own_evaluate is not None:
            return own_metrics(self._own_evaluate(model, self._test, device=self._device))
        options: dict[str, Any] = {"recipe": recipe, "workers": self.config.workers}
        return measure(model, self._test, task=self._task, collate=self._collate, **options)

    def _epoch(self, index: int, network: Network, e: EpochResult) -> Epoch:
        rates = (e.lr, e.loss, e.train_accuracy, e.test_accuracy)
        return Epoch(index, network, e.epoch, e.epochs, *rates, e.seconds)

    @property
    def _refits(self) -> bool:
        """Whether the selector starts from other weights than those that the dense network has."""
        return self.config.selector == "prunefuse" and self.config.criterion in REFITTED

    def _make_plan(self, index: int, bench: Bench[Cost], known: Cut | None = None) -> None:
        """Plan the pruning of the dense network as it is now, or take what is known, and count what its networks cost."""
        config = self.config
        self._cut = known
        if config.selector == "prunefuse" and known is None:
            # How far passes over calibration samples go is known when they are done; later ones are like the first.
            line = rounds.planning_line(config, index, self._sizes.planning if index else 0.0)
            with bench.timed(line) as counted:
                given: dict[str, Any] = {"exclude": self._excluded, "collate": self._collate}
                self._cut = cut(self._dense, self._example, config, self._pool, **given)
                counted["flops"] = self._cut.flops
        self.plan: PruningPlan | None = None if self._cut is None else self._cut.plan
        selector = self._initial_selector()
        chosen = [config.chooser_of(index) for index in (0, 1)]
        if "ensemble" in config.chooser.needs and not dropout_layers(selector):
            raise ValueError(
                f"strategy must not be {config.strategy}, whose passes take dropout, where the selector has no dropout layers"
            )
        compared = 0
        if any(one.needs & {"features", "all_features"} for one in chosen):
            asked = (self._example, self._features, config.features_from, self._task)
            compared = width_of_features(selector, *asked)
            compared += (config.strategy == "badge") * self.num_classes
        self._sizes = Sizes(
            flops_per_input(selector, self._example),
            flops_per_input(self._dense, self._example),
            compared,
            len(self._pool),
            0 if self._test is None else len(self._test),
            self._candidates,
            self._own_fit is None,
            self._taught_once,
            0.0 if self._cut is None else self._cut.flops,
        )

    def _tell(self, event: Event) -> None:
        if self._listener is not None:
            self._listener(event)

    def _initial_selector(self) -> nn.Module:
        if self._cut is not None:
            return self._cut.selector(self._dense)
        return deepcopy(self._dense if self._proxy is None else self._proxy)

    def _starting_selector(self, index: int) -> nn.Module:
        """The selector of round ``index`` before it is trained. After T_sync it starts from what it is cut from."""
        selector, config = self._initial_selector(), self.config
        if config.start == "fresh" or not self.state.selector or self.state.fused:
            return selector
        selector.load_state_dict(self.state.selector)
        if config.start == "shrink":
            shrink_and_perturb_(
                selector, config.shrink_to, config.noise, generator(config.seed, "start", index)
            )
        return selector

    def _build(
        self, factory: Callable[[], nn.Module], *purpose: str | int, name: str = "factory"
    ) -> nn.Module:
        with isolated(derive(self.config.seed, *purpose), self._device):
            model = make(name, factory).to(self._device)
            if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
                outputs_of(model, self._first(model), self._task)  # draws the weights here, from this seed
            return model

    def _first(self, model: nn.Module) -> Any:
        """The first sample of the pool, in a batch, as the model reads it."""
        first, reading = [Batch(torch.tensor([0]))], reading_for(model, collate=self._collate)
        [(inputs, _)] = read(self._pool, first, labels=False, device=self._device, reading=reading)
        return inputs

    def _labeled(self) -> tuple[Tensor, Any]:
        """Indices and labels of all labeled samples, in the order they were bought."""
        bought = self.state.acquisitions
        indices = torch.tensor([i for a in bought for i in a.picks], dtype=torch.int64)
        labels = [y for a in bought for y in a.labels]
        single = type(self._task) is SingleLabel
        return indices, torch.tensor(labels, dtype=torch.int64) if single else labels


@dataclass(frozen=True)
class _Chosen:
    """What choosing led to: picks, or None where a rule stops the loop; and what stopping rules look at."""

    picks: Picks | None
    epochs: list[dict[str, Any]]
    signals: Mapping[str, float]
    classes: Tensor | None = None


def _weights(model: nn.Module | None) -> dict[str, Tensor]:
    """A copy of the weights and buffers, on the CPU."""
    assert model is not None
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()
    }


def _told(metrics: Metrics | None, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a training found, as plain data, which has no NaN: None is a class of which there was no sample."""
    if metrics is None:
        return {"accuracy": None, "metrics": None, "epochs": epochs}
    plain = {
        name: [None if one != one else one for one in value] if isinstance(value, tuple) else value
        for name, value in metrics.items()
    }
    return {"accuracy": first_of(dict(metrics)), "metrics": plain, "epochs": epochs}


def _metrics_of(step: Step[Cost], found: Result[Cost]) -> dict[str, Metrics]:
    """The metrics of the network that a step trained."""
    metrics = found.values.get("metrics")
    if metrics is None:
        return {}
    of_each = {
        name: tuple(math.nan if one is None else one for one in value) if isinstance(value, list) else value
        for name, value in metrics.items()
    }
    return {step.what.removeprefix("train_"): of_each}
