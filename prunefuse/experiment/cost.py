"""The cost ledger: what selection costs, and the work a run will do.

Counted are forward passes (`prunefuse.training.flops_per_input`), backward as twice the forward, and the distances of
k-center, BADGE and neighbors, and the products that calibrating by obspa takes; element-wise work (norms, activations,
scores, sorting) is not. A user's own utility function is not counted either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.experiment.records import Cost
from prunefuse.ops.flops import nearest_neighbors_flops
from prunefuse.selection._strategies import Need, Strategy
from prunefuse.training._recipe import Recipe

FORMULA = """\
C_select(b) = sum over rounds with |L_r| < b of [ 3*E*|L_r|*F(selector) + S_r*F(selector) + K_r ]
  F    FLOPs of one forward pass per image = 2 * multiply-adds of convolutions, linear layers and matrix products
       (counted by fvcore, which reports multiply-adds); a backward pass counts as two forward passes
  E    epochs (more for a small |L_r| if the recipe has a least number of steps); |L_r| labels in round r
  S_r  samples scored: the unlabeled pool |U_r|, or the part of it that is looked at; with k_center and extrapolated
       scores the labeled ones too, as they need their features;
       with bald |U_r| for each of its passes with dropout; 0 where all that is compared are features that are given
  K_r  with k_center, distance work 2*d*(|L_r| + picks)*pool for d features; with badge 2*(d + C)*picks*|U_r| for C
       classes; with extrapolated scores 2*(d + 1)*|L_r|*|U_r|; with probcover 6*d*pool^2; with k clusters of n samples
       2*d*k*n for the start and for each of at most 100 assignments (typiclust k = |L_r| + picks, n = pool;
       diversity by k_means k = picks, n = those preselected); with diversity by k_center
       2*d*(|L_r| + picks)*(|L_r| + preselected); else 0
  Planning the pruning has no FLOPs by this count, but with obspa its passes over calibration samples and the
       products in them, which are added in rounds that plan; its seconds are in the seconds of selection.
  With T_sync the training of the fused network a selector is cut from (and its teacher's passes) is added.
Final network: 3*E*b*F(final) + E*b*F(teacher) with distillation, where images are not augmented b*F(teacher).
Evaluation on the test set is in no sum."""


@dataclass(frozen=True)
class Sizes:
    """What the work of a run depends on besides its configuration.

    ``selector`` and ``final`` are FLOPs per input, ``features`` is what a distance
    reads of a sample: the selector's features, with BADGE its logits too, without distances 0. ``candidates`` is how many
    unlabeled samples are looked at in a round, None being all. ``counted`` is whether the work of training is known,
    ``taught_once`` of how many samples a teacher's outputs are computed once, as they are not augmented and fit in memory.
    ``planning`` are the FLOPs of calibrating, where the criterion does so.
    """

    selector: float
    final: float
    features: int
    pool: int
    test: int
    candidates: int | None = None
    counted: bool = True
    taught_once: int = 0
    planning: float = 0.0


def training_flops(recipe: Recipe, samples: int, flops: float) -> float:
    """Training on ``samples`` samples: forward, and backward as twice the forward; of those held out forward alone."""
    held = recipe.held_out(samples)
    return recipe.epochs_for(samples - held) * (3.0 * (samples - held) + held) * flops


def teacher_flops(recipe: Recipe, samples: int, flops: float, *, once: bool = False) -> float:
    """The teacher's forward passes during such a training, or before it."""
    taught = samples - recipe.held_out(samples)
    if once:
        return 1.0 * samples * flops if recipe.epochs_for(taught) else 0.0
    return 1.0 * recipe.epochs_for(taught) * taught * flops


def test_flops(config: LoopConfig, recipe: Recipe, labels: int, flops: float, sizes: Sizes) -> float:
    """Evaluations of one network on the test set: after every epoch, or after the last."""
    return flops * sizes.test * (max(recipe.epochs_for(labels), 1) if config.test_every_epoch else 1)


def _looked_at(sizes: Sizes, labeled: int) -> int:
    """The unlabeled samples that a round looks at."""
    unlabeled = sizes.pool - labeled
    return unlabeled if sizes.candidates is None else min(sizes.candidates, unlabeled)


def scoring_flops(chooser: Strategy, asks: frozenset[Need], sizes: Sizes, labeled: int) -> float:
    """Forward passes over the pool for what the selector is asked."""
    if not asks - {"dynamics"}:
        return 0.0
    samples = _looked_at(sizes, labeled) + labeled * ("all_features" in asks)
    return chooser.passes * samples * sizes.selector


def choosing_flops(chooser: Strategy, sizes: Sizes, labeled: int, picks: int) -> float:
    """Distances, to pick with ``chooser``."""
    unlabeled = _looked_at(sizes, labeled)
    distances = 0.0
    if "dynamics" in chooser.needs:
        distances = float(nearest_neighbors_flops(unlabeled, labeled, sizes.features))
    elif chooser.distances is None and chooser.needs & {"features", "all_features"}:
        whole = "all_features" in chooser.needs
        centers, seen = (labeled + picks, labeled + unlabeled) if whole else (picks, unlabeled)
        distances = 2.0 * sizes.features * centers * seen
    if chooser.distances is not None:
        distances += chooser.distances(sizes.features, labeled, picks, labeled + unlabeled)
    return distances


@dataclass(frozen=True)
class Spent:
    """A sum over ledger lines."""

    flops: float
    seconds: float


def selection_cost(costs: Iterable[Cost], budget: int) -> Spent:
    """What was spent to choose the first ``budget`` labels: `FORMULA`, in FLOPs and in seconds."""
    phases = ("plan", "train_selector", "score_pool", "select")
    counted = [c for c in costs if c.labels < budget and c.phase in phases]
    return Spent(sum(c.flops for c in counted), sum(c.seconds for c in counted))
