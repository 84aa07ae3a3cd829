"""What a trained network is worth when it is pruned to a part of its FLOPs: one method, with all seeds, as a run of a study."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse import _lock
from prunefuse._seeds import derive, generator, isolated
from prunefuse.data import Data, Labeled, OwnLabels
from prunefuse.data._fingerprint import fingerprint
from prunefuse.experiment import execute, folder, machine, networks
from prunefuse.experiment.cost import training_flops
from prunefuse.experiment.datasets import load_data
from prunefuse.experiment.records import Cost, Epoch, Listener
from prunefuse.experiment.steps import Bench, Result, Step, carry_out, read_done
from prunefuse.experiment.study.pruning_config import WITH_DATA, PruningConfig
from prunefuse.pruning import Target, plan_pruning, prune_without_finetuning
from prunefuse.training import EpochResult, evaluate, flops_per_input, train
from prunefuse.training._recipe import Recipe
from prunefuse.version import __version__

_BATCHES, _BATCH = 10, 64  # that criteria of the loss see
_CALIBRATION = 512
_RATIOS = 256  # that torch-pruning is tried at
KIND = "pruning"


class PruningRun:
    """Trains, prunes and tunes for every seed; making one checks the network."""

    path: Path
    shared: Path | None = None

    def __init__(self, config: PruningConfig, data: Data | None = None) -> None:
        self.config = config
        self.device = machine.resolve_device(config.device)
        self.data = data or load_data(config, seed=config.seeds[0], models=(config.model,))
        self.threads = config.threads or machine.usual_threads(self.data.input_shape)
        self.dense = networks.dense(config.model, self.data, config)

    def tasks(self) -> list[execute.Task]:
        """Training, which other methods share, and then pruning, of every seed."""
        return [
            execute.Task(name, f"{what}, seed {seed}", (f"seed{seed}/train",) if what == "prune" else ())
            for seed in self.config.seeds
            for what in ("train", "prune")
            for name in (f"seed{seed}/{what}",)
        ]

    def prepare(self) -> None:
        """Count the network."""
        _ = self._work

    def is_done(self, task: execute.Task) -> bool:
        """Whether a step has been done."""
        return read_done(self.path / task.name) is not None

    def do(self, task: str, listener: Listener) -> None:
        """Do a step."""
        seed = int(task.partition("/")[0].removeprefix("seed"))
        place = self.path / task
        place.mkdir(parents=True, exist_ok=True)
        bench: Bench[Cost] = Bench(
            folder=place,
            shared=self._shared(seed) if task.endswith("train") else None,
            listener=listener,
            device=self.device,
            checkpoint_seconds=self.config.checkpoint_seconds,
        )
        step = Step(task, task.rpartition("/")[2], (), tuple(line for _, line in self.lines_of(task)))
        with execute.told_apart(), _lock.locked(place):
            carry_out(step, _Pruner(self, seed), bench, Cost)

    def lines_of(self, task: str) -> list[tuple[str, Cost]]:
        """The ledger lines of a task, with keys that are equal where the step is shared."""
        seed = int(task.partition("/")[0].removeprefix("seed"))
        training, testing, tuning = self._work
        if task.endswith("train"):
            return [(f"{self._key(seed)}/{line.phase}", line) for line in (training, testing)]
        return [(f"{self.path}/{task}/{line.phase}", line) for line in (tuning, testing)]

    @cached_property
    def _work(self) -> tuple[Cost, Cost, Cost]:
        samples = len(self.data.pool)
        flops = flops_per_input(self.dense(), torch.zeros(1, *self.data.input_shape))
        trained = training_flops(self.config.recipe, samples, flops)
        tuned = training_flops(self.config.tuning, self.tuned_on, flops * self.config.flops)
        return (
            Cost("train_final", "final", 0, samples, trained, 0.0),
            Cost("evaluate", "final", 0, samples, flops * len(self.data.test), 0.0),
            Cost("train_final", "final", 1, self.tuned_on, tuned, 0.0),
        )

    @property
    def tuned_on(self) -> int:
        """Samples of fine-tuning: as many as the steps see once, or all there are."""
        return min(self.config.tune_steps * self.config.recipe.batch_size, len(self.data.pool))

    def _key(self, seed: int) -> str:
        config = self.config
        names = ("model", "shortcut", "dropout", "flip", "crop")
        told = {name: getattr(config, name) for name in names}
        told |= {"recipe": dataclasses.asdict(config.recipe), "data": self.data_facts(), "seed": seed}
        told |= {
            "weights": self.dense.sha256,
            "device": self.device.type,
            "version": __version__,
            "step": "trained whole",
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

    def _shared(self, seed: int) -> Path | None:
        return None if self.shared is None else self.shared / self._key(seed)

    def describe(self, command: str | None) -> dict[str, Any]:
        """What config.json holds."""
        facts = {
            "config": dataclasses.asdict(self.config),
            "data": self.data_facts(),
            "weights": self.weights_facts(),
        }
        return folder.described(self, command, facts, kind=KIND)

    def data_facts(self) -> dict[str, Any]:
        """What the data are."""
        pool, test = fingerprint(self.data.pool), fingerprint(self.data.test)
        return {"name": self.data.name, "pool_is": pool, "test_is": test}

    def weights_facts(self) -> dict[str, Any] | None:
        """Which weights the network starts from."""
        return self.dense.facts


class _Pruner:
    """Does the two steps of a seed."""

    def __init__(self, run: PruningRun, seed: int) -> None:
        self._run, self._seed = run, seed

    def do(self, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        """Do a step."""
        return self._train(step, bench) if step.what == "train" else self._prune(step, bench)

    def take(self, step: Step[Cost], result: Result[Cost]) -> None:
        """What follows reads it from the disk."""

    def _train(self, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        run, seed = self._run, self._seed
        with isolated(derive(seed, "dense"), run.device):
            model = run.dense().to(run.device)
        self._fit(model, run.data.train, run.config.recipe, ("train", 0), step.work[0], bench)
        accuracy = self._tested(model, step.work[1], bench)
        return Result({"accuracy": accuracy}, {name: t.cpu() for name, t in model.state_dict().items()})

    def _prune(self, step: Step[Cost], bench: Bench[Cost]) -> Result[Cost]:
        from safetensors.torch import load_file

        run, config, seed = self._run, self._run.config, self._seed
        place = run.path / f"seed{seed}" / "train"
        model = run.dense()
        model.load_state_dict(load_file(place / "weights.safetensors"))
        model = model.to(run.device).eval()
        trained = read_done(place)
        assert trained is not None
        order = torch.randperm(len(run.data.pool), generator=generator(seed, "tuning"))
        before = time.perf_counter()
        small = pruned(model, run.data, config, order, run.device)
        seconds = time.perf_counter() - before
        example = torch.zeros(1, *run.data.input_shape, device=run.device)
        kept = flops_per_input(small, example) / flops_per_input(model, example)
        found = {"dense": trained["accuracy"], "pruned": self._tested(small, step.work[1], bench)}
        chosen = order[: run.tuned_on]
        labels = torch.tensor(OwnLabels(run.data.pool)(chosen.tolist()), dtype=torch.int64)
        seen = Labeled(run.data.train, chosen, labels)
        self._fit(small, seen, config.tuning, ("train", 1), step.work[0], bench)
        found["tuned"] = evaluate(small, run.data.test)
        return Result({**found, "flops": kept, "seconds": seconds})

    def _fit(
        self,
        model: nn.Module,
        data: Any,
        recipe: Recipe,
        why: tuple[str, int],
        line: Cost,
        bench: Bench[Cost],
    ) -> None:
        bench.begin(line, recipe.epochs_for(line.labels))

        def told(one: EpochResult) -> None:
            rates = (one.lr, one.loss, one.train_accuracy, one.test_accuracy, one.seconds)
            bench.tell(Epoch(line.round, "final", one.epoch, one.epochs, *rates))

        history = train(
            model,
            data,
            recipe,
            seed=derive(self._seed, *why),
            on_epoch=told,
            checkpoint=bench.checkpoint() if why[1] == 0 else None,
        )
        bench.charge(line, sum(one.seconds for one in history))

    def _tested(self, model: nn.Module, line: Cost, bench: Bench[Cost]) -> float:
        with bench.timed(line):
            return evaluate(model, self._run.data.test)


def pruned(
    model: nn.Module, data: Data, config: PruningConfig, order: Tensor, device: torch.device
) -> nn.Module:
    """The small network that a method leaves of a trained one; the model is not changed.

    Args:
        model: In evaluation mode.
        data: Whose first samples in ``order`` criteria may look at.
        config: The method.
        order: Of the samples.
        device: Where the model is.
    """
    example = torch.zeros(1, *data.input_shape, device=device)
    target: Any = Target("flops", config.flops)
    if config.method == "obspa":
        images, _ = _samples(data, order[:_CALIBRATION], device)
        return prune_without_finetuning(model, example, images, target=target)[1]
    batches = [_samples(data, one, device) for one in order[: _BATCHES * _BATCH].split(_BATCH)]
    if config.method.startswith("torch-pruning"):
        return _by_torch_pruning(model, example, batches, config)
    options: dict[str, Any] = {"criterion": config.criterion}
    if config.criterion in WITH_DATA:
        options["batches"] = batches
    if config.method == "global":
        options["preset"] = "spa"
    return plan_pruning(model, example, target=target, **options).extract(model)


def _samples(data: Data, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    items = [data.pool[index] for index in indices.tolist()]
    return torch.stack([x for x, _ in items]).to(device), torch.tensor(
        [int(y) for _, y in items], device=device
    )


def _by_torch_pruning(
    model: nn.Module, example: Tensor, batches: Sequence[tuple[Tensor, Tensor]], config: PruningConfig
) -> nn.Module:
    """torch-pruning at the smallest of 256 ratios that leaves at most the FLOPs asked for."""
    tp: Any = import_module("torch_pruning")

    scores: Mapping[str, Any] = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first"),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
    }
    model = copy.deepcopy(model)
    if config.criterion == "taylor":
        for images, labels in batches:
            (functional.cross_entropy(model(images), labels) / len(batches)).backward()
    most = config.flops * flops_per_input(model, example)

    def at(ratio: float) -> nn.Module:
        small = copy.deepcopy(model)
        for mine, its in zip(model.parameters(), small.parameters(), strict=True):
            its.grad = None if mine.grad is None else mine.grad.clone()
        last = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(
                small,
                example,
                importance=scores[config.criterion](),
                global_pruning=config.method.endswith("global"),
                pruning_ratio=ratio,
                ignored_layers=[last],
                in_channel_groups={},  # its defaults are one dictionary for all pruners
                out_channel_groups={},
            ).step()
        small.zero_grad()
        return small

    low, high, found = 0, _RATIOS, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            small = at(middle / _RATIOS)
            fits = flops_per_input(small, example) <= most
        except Exception:  # a ratio so large that nothing is left of a layer
            high = middle
            continue
        low, high, found = (low, middle, small) if fits else (middle, high, found)
    if found is None:
        raise ValueError(
            f"method torch-pruning leaves more than {config.flops:g} of the FLOPs at every ratio"
        )
    return found
