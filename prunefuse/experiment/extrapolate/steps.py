"""The steps of a run. Each reads what it needs from the folders of earlier ones, and leaves ``done.json`` when it is done."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse._seeds import derive
from prunefuse.data._batches import Labeled
from prunefuse.dynamics import record_evaluation
from prunefuse.experiment.cost import training_flops
from prunefuse.experiment.extrapolate.kept import (
    finite,
    keep_best,
    random_subset,
    read_kept,
    read_scores,
    write_scores,
)
from prunefuse.experiment.extrapolate.ledger import Arm, PhaseName, Spending, recording_flops
from prunefuse.experiment.extrapolate.methods import HOLDOUT, Work, answers, extrapolator
from prunefuse.experiment.extrapolate.progress import StepProgress
from prunefuse.experiment.extrapolate.setup import Setup
from prunefuse.extrapolation import Tuned, agreement, extrapolate
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, plan_pruning
from prunefuse.training import EpochResult, evaluate, features, predict, train


class Steps:
    """The steps of one seed, in one folder.

    Whatever a step computes is made from the configuration, the seed, and files of earlier steps: so a run that was stopped
    goes on with the first step that is not done, and ends with the same files as one that was not.
    """

    def __init__(self, setup: Setup, seed: int, place: Path, progress: StepProgress) -> None:
        self.setup, self.seed, self.place, self.progress = setup, seed, place, progress
        self._lines: list[Spending] = []
        self._step = ""

    def run(self, name: str, arm: Arm | None = None, keep: int = 0) -> dict[str, Any]:
        """What the step found, now or before."""
        done = self.place / name / "done.json"
        if done.is_file():
            found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            return found
        self._step, self._lines = name, []
        folder = done.parent
        folder.mkdir(parents=True, exist_ok=True)
        if arm is not None:
            found = self._final(folder, arm, keep)
        elif name.startswith("by-"):
            found = self._extrapolate(folder, name.removeprefix("by-"))
        else:
            work = {
                "subset": self._subset,
                "full": self._full,
                "embeddings": self._embed,
                "answers": self._answer,
            }
            found = work[name](folder)
        found["spent"] = [dataclasses.asdict(line) for line in self._lines]
        files.write_json(done, found)
        return found

    def _subset(self, folder: Path) -> dict[str, Any]:
        """Train F_s on a random subset, and score that."""
        setup, config = self.setup, self.setup.config
        labels = setup.labels if config.subset_balanced else None
        chosen = random_subset(len(setup.labels), setup.subset, self.seed, "subset", labels)
        network = self._dense()
        if config.prune_ratio:
            with self._timed("plan", 0, 0.0):
                plan = plan_pruning(
                    network,
                    self.setup.example,
                    ratio=config.prune_ratio,
                    criterion=config.criterion,
                    rounding=config.rounding,
                    seed=self.seed,
                )
                plan.save(folder / "plan.json")
                network = plan.extract(network)
        found = self._train(network, "train_subset", chosen, folder, record=True)
        files.save_tensors(folder / "network.safetensors", network.state_dict())
        return found

    def _full(self, folder: Path) -> dict[str, Any]:
        """Train on everything, and score that: what extrapolation is to replace."""
        network = self._dense()
        found = self._train(network, "train_full", torch.arange(len(self.setup.labels)), folder, record=True)
        files.save_tensors(folder / "network.safetensors", network.state_dict())
        return found

    def _embed(self, folder: Path) -> dict[str, Any]:
        """Embeddings of all samples, in a file that goes on where it was stopped."""
        setup, network, path = self.setup, self._subset_network(), folder / "embeddings.npy"
        count = len(setup.labels)
        # The file exists where it was complete and the step was stopped before it was done.
        with self._timed("embed", count, count * setup.flops(network)), suppress(FileExistsError):
            features(network, setup.data.pool, **self._reading(), out=path)
        return {"features": int(np.load(path, mmap_mode="r").shape[1])}

    def _answer(self, folder: Path) -> dict[str, Any]:
        """What F_s says of all samples in one pass."""
        setup, network, count = self.setup, self._subset_network(), len(self.setup.labels)
        with self._timed("answer", count, count * setup.flops(network)):
            logits = predict(network, setup.data.pool, **self._reading())
            values = answers(setup.config.score, logits, setup.labels.to(logits.device))
            files.save_tensors(folder / "answers.safetensors", {"values": values})
        return {}

    def _extrapolate(self, folder: Path, name: str) -> dict[str, Any]:
        """Scores of all samples from those of the subset."""
        setup, count = self.setup, len(self.setup.labels)
        scores = self._scores("subset")
        true = self._scores("full") if "full" in setup.config.compare else None
        rows, work = self._rows(name, count), Work()
        method = extrapolator(name, setup.subset, setup.labels, derive(self.seed, "extrapolate"), work)
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
        self._wait()
        seconds = time.perf_counter() - start
        if work.neighbors:
            self._charge("neighbors", count, work.neighbors, work.searching)
        self._charge("extrapolate", count, work.products, seconds - work.searching)
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

    def _final(self, folder: Path, arm: Arm, keep: int) -> dict[str, Any]:
        """Prune the data set, and train the final network on what is kept."""
        setup, config, count = self.setup, self.setup.config, len(self.setup.labels)
        labels = setup.labels if config.keep_balanced else None
        with self._timed("select", count, 0.0):
            if arm.name == "random":
                scores = known = None
                kept = random_subset(count, keep, self.seed, "random pruning", labels)
            else:
                scores = self._scores(arm.name)
                known = torch.ones(count, dtype=torch.bool)
                if arm.name != "full":
                    known = ~self._scores("subset").isnan()
                kept = keep_best(scores, keep, self.seed, labels)
            write_scores(folder / "kept.csv", kept, scores, known)
        network = self._dense()
        if config.fuse and arm.name.startswith("by-"):
            with self._timed("fuse", 0, 0.0):
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
        found = self._train(network, "train_final", read_kept(folder / "kept.csv").sort().values, folder)
        files.save_tensors(folder / "final.safetensors", network.state_dict())
        counts = setup.labels[kept].bincount(minlength=setup.data.num_classes)
        return found | {
            "kept": keep,
            "fewest_of_a_class": int(counts.min()),
            "most_of_a_class": int(counts.max()),
        }

    def _train(
        self, network: nn.Module, phase: PhaseName, rows: Tensor, folder: Path, *, record: bool = False
    ) -> dict[str, Any]:
        """Train ``network`` on these samples; with ``record``, write their scores."""
        setup, config, recipe = self.setup, self.setup.config, self.setup.config.training
        labels, flops, count = setup.labels[rows], setup.flops(network), len(rows)
        recorder = config.recorder(count, setup.data.num_classes, setup.device) if record else None
        passes = recorder is not None and config.recorded == "evaluation"
        recording, epochs = 0.0, []

        def on_epoch(result: EpochResult) -> None:
            nonlocal recording
            if recorder is not None and passes:
                start = time.perf_counter()
                plain = Labeled(setup.data.pool, rows, labels)
                record_evaluation(recorder, network, plain, recipe=recipe, workers=config.workers)
                network.train()
                self._wait()
                recording += time.perf_counter() - start
            elif recorder is not None:
                recorder.end_epoch()
            epochs.append([result.loss, result.train_accuracy])
            self.progress.update(
                result.epoch,
                result.epochs,
                f"loss {result.loss:.3f}, accuracy {100 * result.train_accuracy:.1f} %",
            )

        start = time.perf_counter()
        train(
            network,
            Labeled(setup.data.train, rows, labels),
            recipe,
            seed=derive(self.seed, "train", phase),
            workers=config.workers,
            on_batch=recorder.update if recorder is not None and not passes else None,
            on_epoch=on_epoch,
        )
        self._wait()
        seconds = time.perf_counter() - start
        self._charge(phase, count, training_flops(recipe, count, flops), seconds - recording)
        if passes:
            self._charge("record", count, recording_flops(recipe, count, flops), recording)
        if recorder is not None:
            scores = torch.full((len(setup.labels),), torch.nan, dtype=torch.float64)
            scores[rows] = finite(recorder.scores()[config.score].cpu())
            write_scores(folder / "scores.csv", rows, scores, torch.ones(len(scores), dtype=torch.bool))
        with self._timed("evaluate", len(setup.data.test), len(setup.data.test) * flops):
            accuracy = evaluate(network, setup.data.test, recipe=recipe, workers=config.workers)
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

    def _reading(self) -> dict[str, Any]:
        config = self.setup.config
        return {
            "recipe": config.training,
            "workers": config.workers,
            "on_progress": lambda done, total: self.progress.update(done, total, "samples"),
        }

    @contextmanager
    def _timed(self, phase: PhaseName, samples: int, flops: float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._wait()
        self._charge(phase, samples, flops, time.perf_counter() - start)

    def _charge(self, phase: PhaseName, samples: int, flops: float, seconds: float) -> None:
        self._lines.append(Spending(self._step, phase, samples, flops, seconds))

    def _wait(self) -> None:
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize(self.setup.device)
