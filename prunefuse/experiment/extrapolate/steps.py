"""What a run consists of, and how each step is done: from the configuration, the seed, and the files of earlier steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse._seeds import derive
from prunefuse.data._batches import Labeled
from prunefuse.dynamics import record_evaluation
from prunefuse.errors import DamagedFileError
from prunefuse.experiment.cost import training_flops
from prunefuse.experiment.extrapolate.kept import (
    finite,
    keep_best,
    random_subset,
    read_kept,
    read_scores,
    write_scores,
)
from prunefuse.experiment.extrapolate.ledger import Spending, arms, recording_flops
from prunefuse.experiment.extrapolate.methods import HOLDOUT, NEEDS, Work, answers, extrapolator
from prunefuse.experiment.extrapolate.setup import Setup
from prunefuse.experiment.records import Epoch, PhaseName
from prunefuse.experiment.steps import DONE, Bench, Result, Step, check_files, read_done
from prunefuse.extrapolation import Tuned, agreement, extrapolate
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan
from prunefuse.training import EpochResult, evaluate, features, predict, train


def steps_of(setup: Setup, seed: int, compare: Sequence[str] | None = None) -> tuple[Step[Spending], ...]:
    """The steps of a seed, each after its inputs; ``compare``: other arms to compare with than the configuration's."""
    config, count = setup.config, len(setup.labels)
    compare = config.compare if compare is None else compare

    def name(step: str) -> str:
        return f"seed{seed}/{step}"

    def line(step: str, phase: PhaseName, samples: int, flops: float) -> Spending:
        return Spending(step, phase, samples, flops, 0.0)

    def training(
        step: str, phase: PhaseName, samples: int, flops: float, recorded: bool
    ) -> tuple[Spending, ...]:
        lines = [line(step, phase, samples, training_flops(config.training, samples, flops))]
        if recorded and config.recorded == "evaluation":
            lines.append(line(step, "record", samples, recording_flops(config.training, samples, flops)))
        tested = len(setup.data.test)
        return (*lines, line(step, "evaluate", tested, tested * flops))

    found = arms(config.by, compare, NEEDS)
    needed = {step for arm in found for step in arm.steps}
    small, dense = setup.subset_flops, setup.dense_flops
    steps = []
    if "full" in needed:  # first, as the others are compared with it
        work = training("full", "train_full", count, dense, recorded=True)
        steps.append(Step(name("full"), "full", (), work))
    if "subset" in needed:
        work = training("subset", "train_subset", setup.subset, small, recorded=True)
        steps.append(Step(name("subset"), "subset", (), work))
    for step, phase in (("embeddings", "embed"), ("answers", "answer")):
        if step in needed:
            passed = line(step, phase, count, count * small)  # type: ignore[arg-type]  # mypy widens the literals
            steps.append(Step(name(step), step, (name("subset"),), (passed,)))
    for arm in found:
        if arm.name in arm.steps and arm.name.startswith("by-"):
            read = [step for step in arm.steps if step != arm.name]
            inputs = (*read, *(["full"] if "full" in needed else []))
            # What extrapolators compute is counted as it is run.
            steps.append(Step(name(arm.name), "extrapolate", tuple(map(name, inputs))))
    for arm in found:
        for keep in setup.keeps:
            step = arm.final(keep)
            work = training(step, "train_final", keep, dense, recorded=False)
            reads = [one for one in arm.steps if one in ("subset", "full", arm.name)]
            steps.append(Step(name(step), "final", tuple(map(name, reads)), work))
    return tuple(steps)


class Steps:
    """Does the steps of one seed; ``place`` is the run folder.

    Whatever a step computes is made from the configuration, the seed, and files of earlier steps: so a run that was stopped
    goes on with the first step that is not done, and ends with the same files as one that was not.
    """

    def __init__(self, setup: Setup, seed: int, place: Path) -> None:
        self.setup, self.seed, self.place = setup, seed, place / f"seed{seed}"

    def do(self, step: Step[Spending], bench: Bench[Spending]) -> Result[Spending]:
        """Do a step, once its inputs are found to be what was written."""
        for name in step.inputs:
            folder = self.place.parent / name
            told = read_done(folder)
            if told is None:
                raise DamagedFileError(f"{folder / DONE} is missing: {step.name} needs it")
            check_files(folder, told["files"])
        assert bench.folder is not None
        work = {
            "subset": self._subset,
            "full": self._full,
            "embeddings": self._embed,
            "answers": self._answer,
            "extrapolate": self._extrapolate,
            "final": self._final,
        }
        return Result(work[step.what](step, bench, bench.folder))

    def take(self, step: Step[Spending], result: Result[Spending]) -> None:
        """Nothing: what a step found is in its folder."""

    def _subset(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """Train F_s on a random subset, and score that."""
        setup, config = self.setup, self.setup.config
        labels = setup.labels if config.subset_balanced else None
        chosen = random_subset(len(setup.labels), setup.subset, self.seed, "subset", labels)
        network = self._dense()
        if config.prune_ratio:
            with bench.timed(Spending(self._short(step), "plan", 0, 0.0, 0.0)):
                plan = setup.plan(network, self.seed)
                plan.save(folder / "plan.json")
                network = plan.extract(network)
        found = self._train(network, step, bench, folder, chosen)
        files.save_tensors(folder / "network.safetensors", network.state_dict())
        return found

    def _full(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """Train on everything, and score that: what extrapolation is to replace."""
        network = self._dense()
        found = self._train(network, step, bench, folder, torch.arange(len(self.setup.labels)))
        files.save_tensors(folder / "network.safetensors", network.state_dict())
        return found

    def _embed(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """Embeddings of all samples, in a file that goes on where it was stopped."""
        setup, network, path = self.setup, self._subset_network(), folder / "embeddings.npy"
        # Complete when the step was stopped before it was done: nothing says any more that it is what was written.
        path.unlink(missing_ok=True)
        with bench.timed(step.line("embed")):
            features(network, setup.data.pool, **self._reading(bench), out=path)
        return {"features": int(np.load(path, mmap_mode="r").shape[1])}

    def _answer(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """What F_s says of all samples in one pass."""
        setup, network = self.setup, self._subset_network()
        with bench.timed(step.line("answer")):
            logits = predict(network, setup.data.pool, **self._reading(bench))
            values = answers(setup.config.score, logits, setup.labels.to(logits.device))
            files.save_tensors(folder / "answers.safetensors", {"values": values})
        return {}

    def _extrapolate(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """Scores of all samples from those of the subset."""
        setup, count = self.setup, len(self.setup.labels)
        short = self._short(step)
        name = short.removeprefix("by-")
        scores = self._scores("subset")
        true = self._scores("full") if "full" in setup.config.compare else None
        rows, work = self._rows(name, count), Work()
        method = extrapolator(name, setup.subset, setup.labels, derive(self.seed, "extrapolate"), work)
        bench.begin(Spending(short, "extrapolate", count, 0.0, 0.0))
        start = time.perf_counter()
        with work:
            result = extrapolate(
                method,
                rows,
                scores,
                keep=min(setup.keeps[0] / count, 1 - 1e-9),
                holdout=HOLDOUT,
                seed=self.seed,
            )
        bench.wait()
        seconds = time.perf_counter() - start
        if work.neighbors:
            bench.charge(Spending(short, "neighbors", count, work.neighbors, 0.0), work.searching)
        bench.charge(Spending(short, "extrapolate", count, work.products, 0.0), seconds - work.searching)
        complete, known = result.scores.cpu(), ~scores.isnan()
        order = keep_best(complete, count, self.seed)
        write_scores(folder / "scores.csv", order, complete, known)
        options, rest = dict(method.options) if isinstance(method, Tuned) else {}, ~known
        unscored = {}
        if true is not None and bool(rest.any()):
            unscored = {
                str(keep): dataclasses.asdict(agreement(complete[rest], true[rest], keep / count))
                for keep in setup.keeps
                if keep < count
            }
        return {
            "options": options,
            "held_out": dataclasses.asdict(result.held_out),
            "unscored": unscored,
        }

    def _final(self, step: Step[Spending], bench: Bench[Spending], folder: Path) -> dict[str, Any]:
        """Prune the data set, and train the final network on what is kept."""
        setup, config, count = self.setup, self.setup.config, len(self.setup.labels)
        labels = setup.labels if config.keep_balanced else None
        short = self._short(step)
        arm, _, size = short.rpartition("/keep-")
        keep = int(size)
        with bench.timed(Spending(short, "select", count, 0.0, 0.0)):
            if arm == "random":
                scores = known = None
                kept = random_subset(count, keep, self.seed, "random pruning", labels)
            else:
                scores = self._scores(arm)
                known = torch.ones(count, dtype=torch.bool)
                if arm != "full":
                    known = ~self._scores("subset").isnan()
                kept = keep_best(scores, keep, self.seed, labels)
            write_scores(folder / "kept.csv", kept, scores, known)
        network = self._dense()
        if config.fuse and arm.startswith("by-"):
            with bench.timed(Spending(short, "fuse", 0, 0.0, 0.0)):
                complement: str | nn.Module = config.complement
                if complement == "reinit":
                    complement = self._dense("complement")
                fuse_(
                    network,
                    self._subset_network(),
                    PruningPlan.load(self.place / "subset/plan.json"),
                    complement,
                )
        # In the order of the data set, so that the training depends on what is kept alone.
        found = self._train(network, step, bench, folder, read_kept(folder / "kept.csv").sort().values)
        files.save_tensors(folder / "final.safetensors", network.state_dict())
        counts = setup.labels[kept].bincount(minlength=setup.data.num_classes)
        return found | {
            "kept": keep,
            "fewest_of_a_class": int(counts.min()),
            "most_of_a_class": int(counts.max()),
        }

    def _train(
        self, network: nn.Module, step: Step[Spending], bench: Bench[Spending], folder: Path, rows: Tensor
    ) -> dict[str, Any]:
        """Train ``network`` on these samples, and test it; but for a final network, write their scores."""
        setup, config, recipe = self.setup, self.setup.config, self.setup.config.training
        training, *recording, testing = step.work
        labels, count = setup.labels[rows], len(rows)
        recorder = None
        if step.what != "final":
            recorder = config.recorder(count, setup.data.num_classes, setup.device)
        checkpoint = bench.checkpoint(recorder)
        assert checkpoint is not None
        spent = checkpoint.notes  # seconds of recording, also before the run was stopped

        def on_epoch(result: EpochResult) -> None:
            if recorder is not None and recording:
                start = time.perf_counter()
                plain = Labeled(setup.data.pool, rows, labels)
                record_evaluation(recorder, network, plain, recipe=recipe, workers=config.workers)
                network.train()
                bench.wait()
                spent["recording"] = spent.get("recording", 0.0) + time.perf_counter() - start
            elif recorder is not None:
                recorder.end_epoch()
            rates = (result.lr, result.loss, result.train_accuracy, None)
            bench.tell(Epoch(0, training.network, result.epoch, result.epochs, *rates, result.seconds))

        bench.begin(training, recipe.epochs_for(count))
        history = train(
            network,
            Labeled(setup.data.train, rows, labels),
            recipe,
            seed=derive(self.seed, "train", training.phase),
            workers=config.workers,
            on_batch=recorder.update if recorder is not None and not recording else None,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
        bench.charge(training, sum(epoch.seconds for epoch in history))
        for line in recording:
            bench.charge(line, spent["recording"])
        if recorder is not None:
            scores = torch.full((len(setup.labels),), torch.nan, dtype=torch.float64)
            scores[rows] = finite(recorder.scores()[config.score].cpu())
            write_scores(folder / "scores.csv", rows, scores, torch.ones(len(scores), dtype=torch.bool))
        with bench.timed(testing):
            accuracy = evaluate(network, setup.data.test, recipe=recipe, workers=config.workers)
        epochs = [[epoch.loss, epoch.train_accuracy] for epoch in history]
        return {"accuracy": accuracy, "samples": count, "epochs": epochs}

    def _rows(self, name: str, count: int) -> Any:
        """What the extrapolator takes as embeddings."""
        if name == "random":
            return torch.zeros(count, 1)
        if name == "direct":
            from safetensors.torch import load_file

            return load_file(self.place / "answers" / "answers.safetensors")["values"]
        path = self.place / "embeddings" / "embeddings.npy"
        if self.setup.device.type == "cpu":
            return np.load(path, mmap_mode="r")
        return torch.from_numpy(np.load(path)).to(self.setup.device)

    def _scores(self, step: str) -> Tensor:
        return read_scores(self.place / step / "scores.csv", len(self.setup.labels))

    def _dense(self, purpose: str = "dense") -> nn.Module:
        return self.setup.dense(self.seed, purpose)

    def _subset_network(self) -> nn.Module:
        return self.setup.subset_network(self.place / "subset")

    def _reading(self, bench: Bench[Spending]) -> dict[str, Any]:
        config = self.setup.config
        return {
            "recipe": config.training,
            "workers": config.workers,
            "on_progress": bench.progress("samples"),
        }

    def _short(self, step: Step[Spending]) -> str:
        """Name of a step within its seed, as the ledger has it."""
        return step.name.partition("/")[2]
