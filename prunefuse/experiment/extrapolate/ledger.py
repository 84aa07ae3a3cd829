"""What the steps of a run cost, and what of it each way to a pruned data set pays for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunefuse.experiment.records import Network, PhaseName
from prunefuse.training import Recipe

FORMULA = """\
C(extrapolated) = 3*E*n*F(F_s) + R*n*F(F_s) + N*F(F_s) + sum over searches 2*q*r*(d + 1) + X + 3*E*k*F(model)
C(full scores)  = 3*E*N*F(model) + R*N*F(model) + 3*E*k*F(model)
C(random)       = 3*E*k*F(model)
  F    FLOPs of one forward pass per image = 2 * multiply-adds of convolutions, linear layers and matrix products
       (counted by fvcore, which reports multiply-adds); a backward pass counts as two forward passes
  E    epochs (more for few samples if the recipe has a least number of steps); N samples, n of them in the subset, k kept
  R    0, or E where scores are recorded in evaluation passes
  N*F(F_s)  the pass that embeds all samples, or in which F_s scores them directly; not taken for random scores
  q, r, d   queries, references and features of every neighbor search, those included that choose options and judge on
       the held-out part
  X    matrix products of fitting and asking the extrapolator, as they were run, choice of options and judging included; of
       scikit-learn's by formula: 2 per weight and sample, three times that in training, or 2*n*d^2 + d^3/3 for ridge
Planning the pruning, choosing the best and fusing have no FLOPs by this count; their seconds count.
Evaluation on the test set is in no sum. Seconds of a step that was stopped and done again are those of the last time,
but for training, which goes on from a checkpoint."""

TITLES: dict[str, str] = {
    "plan": "plan pruning",
    "train_subset": "train F_s on the subset",
    "record": "evaluation passes for scores",
    "embed": "embed all samples",
    "answer": "F_s scores all samples",
    "neighbors": "find neighbors",
    "extrapolate": "extrapolator",
    "train_full": "train on all samples",
    "select": "choose what to keep",
    "fuse": "fuse",
    "train_final": "train on the kept",
}


@dataclass(frozen=True)
class Spending:
    """One line of the ledger: what a phase of a step took for so many samples."""

    step: str
    phase: PhaseName
    samples: int
    flops: float
    seconds: float

    @property
    def round(self) -> int:
        """There are none."""
        return 0

    @property
    def network(self) -> Network:
        """F_s counts as a selector."""
        return "selector" if self.step in ("subset", "embeddings", "answers") else "final"

    @property
    def labels(self) -> int:
        """The samples."""
        return self.samples


@dataclass(frozen=True)
class Arm:
    """One way to a pruned data set: its name, what it is for people, and the steps before the final one that it pays for."""

    name: str
    label: str
    steps: tuple[str, ...]

    def final(self, keep: int) -> str:
        """The step that trains on ``keep`` samples."""
        return f"{self.name}/keep-{keep}"


def spent(lines: Iterable[Spending], arm: Arm, keep: int) -> dict[str, tuple[float, float]]:
    """FLOPs and seconds by phase that the arm has paid for a network trained on ``keep`` samples; no evaluation."""
    paid = {*arm.steps, arm.final(keep)}
    sums: dict[str, tuple[float, float]] = {}
    for line in lines:
        if line.step in paid and line.phase != "evaluate":
            flops, seconds = sums.get(line.phase, (0.0, 0.0))
            sums[line.phase] = (flops + line.flops, seconds + line.seconds)
    return {phase: sums[phase] for phase in TITLES if phase in sums}


def recording_flops(recipe: Recipe, samples: int, flops: float) -> float:
    """Forward passes of their own after every epoch of training."""
    return 1.0 * recipe.epochs_for(samples) * samples * flops


def arms(by: Sequence[str], compare: Sequence[str], needs: dict[str, str]) -> tuple[Arm, ...]:
    """The arms of a run, in order."""
    passes = {"embeddings": ("embeddings",), "answers": ("answers",), "nothing": ()}
    titles = {
        "direct": "scored by F_s directly",
        "random": "subset scores, random for the rest",
    }
    found = [
        Arm(
            f"by-{name}",
            titles.get(name, f"extrapolated by {name}"),
            ("subset", *passes[needs[name]], f"by-{name}"),
        )
        for name in by
    ]
    if "full" in compare:
        found.append(Arm("full", "full scores", ("full",)))
    if "random" in compare:
        found.append(Arm("random", "random pruning", ()))
    return tuple(found)
