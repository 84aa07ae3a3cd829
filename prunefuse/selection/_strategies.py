"""Acquisition strategies by token: what each needs from the network, and which samples it labels next.

Utilities are higher = label first for every strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from prunefuse._names import DIVERSITY, Diversity
from prunefuse._options import at_least, one_of, positive, require
from prunefuse.data._items import length_of
from prunefuse.errors import TooFewRowsError
from prunefuse.extrapolation import KNN
from prunefuse.extrapolation._interface import refuse_infinite
from prunefuse.ops.arrays import as_tensor, require_floating
from prunefuse.ops.transfer import row_extents, rows_where, upload
from prunefuse.scoring import LOGIT_STRATEGIES, score, statistics
from prunefuse.selection._badge import badge
from prunefuse.selection._batches import (
    STOCHASTIC,
    Stochastic,
    perturbed,
    require_not_negative,
    turn_by_turn,
)
from prunefuse.selection._cold_start import probcover, typiclust
from prunefuse.selection._custom import load_function
from prunefuse.selection._greedy import PassVariance, greedy_sampling
from prunefuse.selection._k_center import k_center_on_host
from prunefuse.selection._k_means import k_means
from prunefuse.selection._top_b import best_first, require_selected
from prunefuse.tasks import Regression, SingleLabel, Task

# logits, features: of the unlabeled samples. all_features: of the labeled ones too. ensemble: dropout passes.
# dynamics: scores of the labeled ones from the selector's training. utilities: of each batch of outputs, which are not kept.
# answers: the labels of the labeled ones.
Need = Literal["logits", "features", "all_features", "ensemble", "dynamics", "utilities", "answers"]
UtilityFunction = Callable[[Tensor], Any]
_SINGLE_LABEL = SingleLabel()


@dataclass(frozen=True)
class Pool:
    """What a strategy chooses from. Indices are int64 CPU tensors of indices into the data set.

    What a strategy does not need may be None. ``logits`` (C,), ``features`` (d,) and what ``ensemble`` was updated
    with have one row for each of ``unlabeled``; for a strategy that needs ``all_features``, ``features`` has one row
    for each of ``labeled``, then one for each of ``unlabeled``. ``scores`` has one for each of ``labeled``, NaN where there is
    none. ``utilities`` (N,) are those of outputs that were not kept, ``answers`` the labels of
    the labeled ones. ``generator`` is the strategy's only source of randomness. ``classes`` is how many there are.
    """

    unlabeled: Tensor
    labeled: Tensor
    generator: torch.Generator
    logits: Tensor | None = None
    features: Tensor | None = None
    ensemble: Any = None
    scores: Tensor | None = None
    classes: int = 2
    utilities: Tensor | None = None
    answers: Tensor | None = None


@dataclass(frozen=True)
class Picks:
    """``indices`` into the data set in pick order (int64, CPU), their utilities (None where there are none).

    ``unselectable`` counts the unlabeled samples that could not be picked: their utility was NaN, or a feature
    not finite.
    """

    indices: Tensor
    utilities: Tensor | None = None
    unselectable: int = 0


@dataclass(frozen=True)
class Strategy:
    """``pick(pool, b)`` chooses ``b`` unlabeled samples; ValueError if fewer can be chosen.

    ``needs`` says what the network has to be asked, ``passes`` how many forward passes over the pool that takes,
    ``dynamics`` which preset of `prunefuse.dynamics` is recorded while it is trained. ``cold_start``: it is made for a pool
    without labels, and may pick the first samples too, by the features of a network that is not trained. ``distances``
    is what it computes of these at most, in FLOPs, where needs do not say it: by what a distance reads, and how many
    samples are labeled, to pick, and in the pool. ``of_outputs`` makes utilities of the outputs of a batch and what the network
    was given, ``ensemble`` what collects passes with dropout, where these are no logits of classes.
    """

    needs: frozenset[Need]
    pick: Callable[[Pool, int], Picks]
    passes: int = 1
    dynamics: str | None = None
    cold_start: bool = False
    distances: Callable[[int, int, int, int], float] | None = None
    of_outputs: Callable[[Any, Any], Tensor] | None = None
    ensemble: Callable[[], Any] | None = None


def _random(pool: Pool, b: int) -> Picks:
    _require_enough(pool, b)
    return Picks(pool.unlabeled[torch.randperm(len(pool.unlabeled), generator=pool.generator)[:b]])


def _k_center(pool: Pool, b: int) -> Picks:
    """Greedy k-center on the features: each pick is the sample farthest from all labeled and picked ones."""
    assert pool.features is not None
    _require_enough(pool, b)
    known = len(pool.labeled)
    labeled = torch.arange(known, device=pool.features.device)
    rows, unselectable = k_center_on_host(pool.features, b, labeled)
    return Picks(pool.unlabeled[rows - known], None, unselectable)


def _badge(pool: Pool, b: int) -> Picks:
    """k-means++ over gradient embeddings."""
    assert pool.logits is not None
    assert pool.features is not None
    rows, unselectable = badge(pool.logits, pool.features, b, pool.generator)
    return Picks(pool.unlabeled[rows], None, unselectable)


def _cold(choose: Callable[[Pool, int, Tensor], Any], pool: Pool, b: int) -> Picks:
    """Picks by features alone. On a GPU it waits for the device several times."""
    assert pool.features is not None
    _require_enough(pool, b)
    known = len(pool.labeled)
    rows = choose(pool, b, torch.arange(known, device=pool.features.device))
    least, most = row_extents(pool.features[known:])
    unselectable = int((~(least.isfinite() & most.isfinite())).sum())
    return Picks(pool.unlabeled[rows.cpu() - known], None, unselectable)


def _typiclust(pool: Pool, b: int, labeled: Tensor) -> Any:
    return typiclust(pool.features, b, labeled, generator=pool.generator)


def _probcover(pool: Pool, b: int, labeled: Tensor) -> Any:
    return probcover(pool.features, b, labeled, classes=max(2, pool.classes), generator=pool.generator)


def _require_enough(pool: Pool, b: int) -> None:
    require(b <= len(pool.unlabeled), "b", f"at most the {len(pool.unlabeled)} unlabeled samples", b)


def _of_logits(function: UtilityFunction, pool: Pool) -> Tensor:
    """Utilities by a function of the logits, which may be a user's: checked."""
    assert pool.logits is not None
    utilities = as_tensor("the utility function's result", function(pool.logits))
    require_floating("the utility function's result", utilities)
    if utilities.shape != pool.logits.shape[:1]:
        raise ValueError(
            f"the utility function must return shape ({len(pool.logits)},), one utility for every row of the logits, "
            f"got {tuple(utilities.shape)}"
        )
    return upload(utilities, pool.logits.device)


def _named(token: str) -> UtilityFunction:
    """The function that a string names. Whoever typed the string is told in a line how it fails."""
    function = load_function(token)

    def called(logits: Tensor) -> Any:
        try:
            return function(logits)
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"strategy must return utilities, got from {token}: {told}") from error

    return called


def _given(pool: Pool) -> Tensor:
    assert pool.utilities is not None
    return pool.utilities


def _variance(pool: Pool) -> Tensor:
    assert pool.ensemble is not None
    utilities: Tensor = pool.ensemble.result()
    return utilities


def _greedy(both: bool, pool: Pool, b: int) -> Picks:
    assert pool.logits is not None
    assert pool.features is not None
    assert pool.answers is not None
    _require_enough(pool, b)
    answers = upload(pool.answers.flatten(1).float(), pool.logits.device)
    values = torch.cat((answers, pool.logits.flatten(1)))
    found = greedy_sampling(values, b, len(answers), features=pool.features if both else None)
    return Picks(pool.unlabeled[found.rows], None, found.unselectable)


def _bald(pool: Pool) -> Tensor:
    assert pool.ensemble is not None
    utilities: Tensor = pool.ensemble.result("bald")
    return utilities


def _extrapolated(pool: Pool) -> Tensor:
    """Scores of the labeled samples from the selector's training, extended to the others by their neighbors.

    On a GPU it waits for the device once, before it searches, for how many samples can be used.
    """
    assert pool.features is not None
    assert pool.scores is not None
    known = len(pool.labeled)
    features = pool.features
    least, most = row_extents(features)
    usable = least.isfinite() & most.isfinite()
    scores = torch.where(usable[:known], upload(pool.scores.double(), features.device), torch.nan)
    has_score = ~scores.isnan()
    told = (
        has_score.sum(),
        usable[known:].sum(),
        scores.isinf().sum(),
        torch.maximum(most, -least).where(usable, 0).amax(),
    )
    scored, others, infinite, largest = torch.stack([number.double() for number in told]).tolist()
    if infinite:
        refuse_infinite(scores)
    utilities = torch.full((len(features) - known,), torch.nan, dtype=torch.float64, device=features.device)
    if scored:
        rows, unknown = rows_where(has_score, int(scored)), rows_where(usable[known:], int(others))
        model = KNN(k=min(_NEIGHBORS, int(scored))).learn(features[rows], scores[rows], largest)
        utilities[unknown] = model.answer(features[known:][unknown], largest)
    return utilities


def _predicted(pool: Pool) -> Tensor:
    if pool.ensemble is not None:
        classes: Tensor = pool.ensemble.probabilities().argmax(1)
    else:
        classes = statistics(pool.logits).argmax
    return classes


def _by_utility(
    utility: Callable[[Pool], Tensor],
    stochastic: Stochastic,
    beta: float,
    class_balanced: bool,
    pool: Pool,
    b: int,
) -> Picks:
    """The ``b`` samples of highest utility, perturbed or balanced if that was asked for. Utilities told are true ones.

    On a GPU it waits for the device once, at the end, for the samples and for what must be known to refuse them.
    """
    utilities = utility(pool)
    ranking = perturbed(utilities, stochastic, beta, pool.generator)
    rows = turn_by_turn(ranking, _predicted(pool), b) if class_balanced else best_first(ranking, b)[0]
    told = [rows, utilities[rows.clamp_min(0)], utilities.isnan().sum()[None]]
    if stochastic == "power" and len(utilities):
        told.append(utilities.nan_to_num().amin(0, keepdim=True))
    host = torch.cat([part.double() for part in told]).cpu()
    picked, of_picked, unselectable, *least = host.split([len(part) for part in told])
    if least:
        require_not_negative(float(least[0]))
    require_selected(picked, len(ranking))
    return Picks(pool.unlabeled[picked.long()], of_picked.to(utilities.dtype), int(unselectable))


def _by_diversity(
    utility: Callable[[Pool], Tensor],
    stochastic: Stochastic,
    beta: float,
    diversity: Diversity,
    preselect: int,
    labeled_too: bool,
    pool: Pool,
    b: int,
) -> Picks:
    """Of the ``preselect * b`` samples of highest utility, perturbed if that was asked for, ``b`` that differ.

    ``labeled_too``: features are of the labeled samples first. On a GPU it waits for the device for the samples, and then as
    k-center or k-means do.
    """
    assert pool.features is not None
    known = len(pool.labeled) if labeled_too else 0
    features = pool.features[known:]
    least, most = row_extents(features)
    utilities = utility(pool).where(least.isfinite() & most.isfinite(), torch.nan)
    ranking = perturbed(utilities, stochastic, beta, pool.generator)
    rows, _ = best_first(ranking, b if b > len(ranking) else min(preselect * b, len(ranking)))
    told = [
        (rows >= 0).sum(),
        utilities.isnan().sum(),
        utilities.nan_to_num().amin() if len(rows) else rows.sum(),
    ]
    found, unselectable, lowest = torch.stack([number.double() for number in told]).tolist()
    if stochastic == "power":
        require_not_negative(lowest)
    if b > found:
        said = f"b is {b}, but only {int(found)} of {len(ranking)} rows can be selected (the others are NaN)"
        raise TooFewRowsError(said, int(found), len(ranking))
    rows = rows[: int(found)]
    if diversity == "k_center":
        both = torch.cat((pool.features[:known], features[rows]))
        places = k_center_on_host(both, b, torch.arange(known, device=both.device))[0] - known
    else:
        places = _one_of_each(features[rows], utilities[rows], b, pool.generator)
    picked = rows[upload(places, rows.device)]
    host = torch.stack((picked.double(), utilities[picked].double())).cpu()
    return Picks(pool.unlabeled[host[0].long()], host[1].to(utilities.dtype), int(unselectable))


def _one_of_each(features: Tensor, utilities: Tensor, b: int, generator: torch.Generator) -> Tensor:
    """Places (b,) of the rows nearest to the centers of ``b`` clusters, weighted by utility, rising (Zhdanov 2019).

    Where rows coincide, so that there are fewer clusters, the first of the other rows fill up. The places are on the CPU.
    """
    if b == 0:
        return torch.empty(0, dtype=torch.int64)
    found = k_means(features, b, generator=generator, weights=_as_weights(utilities))
    away = (features.double() - found.centers[found.labels].double()).square().sum(1).cpu()
    nearest = away.sort(stable=True).indices
    by_cluster = nearest[found.labels.cpu()[nearest].sort(stable=True).indices]
    clusters = found.labels.cpu()[by_cluster]
    first = torch.ones(len(clusters), dtype=torch.bool)
    first[1:] = clusters[1:] != clusters[:-1]
    taken = torch.zeros(len(clusters), dtype=torch.bool).index_fill_(0, by_cluster[first], True)
    others = (~taken).nonzero()[:, 0][: b - int(taken.sum())]
    return taken.index_fill_(0, others, True).nonzero()[:, 0]


def _as_weights(utilities: Tensor) -> Tensor:
    """Utilities as weights of k-means: their differences from 0, or from the least where that is negative; at most 1."""
    u = utilities.double()
    finite = u.isfinite()
    low, high = u.where(finite, torch.inf).amin(), u.where(finite, -torch.inf).amax()
    above = torch.minimum(torch.maximum(u, low), high) - low.clamp(max=0)
    weights = above / above.amax()
    # None is useful, or no difference is known.
    return torch.where(weights.isfinite().all(), weights, 1.0)


# Of k-means' assignments there are at most so many, beside the start.
_ASSIGNMENTS = 100


def _of_clusters(clusters: int, rows: int, width: int) -> float:
    """FLOPs of k-means at most."""
    return 2.0 * width * clusters * rows * (1 + _ASSIGNMENTS)


def _of_diversity(
    diversity: Diversity, preselect: int, width: int, labeled: int, picks: int, pool: int
) -> float:
    candidates = min(preselect * picks, pool - labeled)
    if diversity == "k_center":
        return 2.0 * width * (labeled + picks) * (labeled + candidates)
    return _of_clusters(picks, candidates, width)


def _of_typiclust(width: int, labeled: int, picks: int, pool: int) -> float:
    # Neighbors inside of clusters are as many at most as in one assignment of equal clusters.
    clusters = min(labeled + picks, 500, pool)
    return _of_clusters(clusters, pool, width) + 2.0 * width * picks * (pool / clusters) ** 2


def _of_probcover(width: int, labeled: int, picks: int, pool: int) -> float:
    # The radius, the gains at the start, and what is covered: all pairs each.
    return 3 * 2.0 * width * pool * pool


_SEQUENTIAL = {
    "random": Strategy(frozenset(), _random, cold_start=True),
    "k_center": Strategy(frozenset({"all_features"}), _k_center),
    "badge": Strategy(frozenset({"logits", "features"}), _badge),
    "typiclust": Strategy(
        frozenset({"all_features"}), partial(_cold, _typiclust), cold_start=True, distances=_of_typiclust
    ),
    "probcover": Strategy(
        frozenset({"all_features"}),
        partial(_cold, _probcover),
        cold_start=True,
        distances=_of_probcover,
    ),
}
_UTILITIES: dict[str, tuple[Need, Callable[[Pool], Tensor]]] = {
    **{token: ("logits", partial(_of_logits, partial(score, strategy=token))) for token in LOGIT_STRATEGIES},
    "bald": ("ensemble", _bald),
}
# By the score that is recorded: those of which higher means harder, and that are finite.
_NEIGHBORS = 20
_GREEDY = {"greedy_outputs": False, "greedy_both": True}
_EXTRAPOLATED = {f"extrapolated_{score}": score for score in ("du", "dual", "tdds", "el2n", "loss")}
STRATEGIES: tuple[str, ...] = (
    *("random", *_UTILITIES, *_EXTRAPOLATED),
    *("k_center", "badge", "typiclust", "probcover"),
)


def strategy(
    token: str | UtilityFunction,
    *,
    passes: int = 10,
    stochastic: Stochastic = "none",
    beta: float = 1.0,
    class_balanced: bool = False,
    diversity: Diversity = "none",
    preselect: int = 10,
    task: Task = _SINGLE_LABEL,
) -> Strategy:
    """A strategy by name, or made of a utility function.

    Args:
        token: one of `STRATEGIES`; or a function that takes the logits (N, C) of the unlabeled samples and returns their
            utilities (N,), higher = label first, NaN = never; or where such a function stands, as
            ``package.module:name`` or ``path/to/file.py:name``.
        passes: of ``bald``: forward passes with dropout.
        stochastic: a random batch instead of the best one; see `prunefuse.selection.batches.perturbed`.
        beta: how near that stays to the best one.
        class_balanced: as many of every predicted class as there are, the best of each; see
            `prunefuse.selection.batches.best_of_each`.
        diversity: of the ``preselect`` times as many samples of highest utility as are to be picked, those that differ.
            ``k_center`` takes each sample farthest from all labeled and picked ones. ``k_means`` makes as many clusters
            as picks, weighted by utility, and takes the sample nearest to each center (Zhdanov 2019, *Diverse Mini-batch
            Active Learning*).
        preselect: how many times as many.
        task: what the network learns. Strategies by utility are those of the task, and a function is given the outputs of one
            batch after another. Those of classes alone are not for another task.

    Raises:
        TypeError: token is neither a string nor a function.
        ValueError: an unknown token, an option out of range, or one for a strategy that has no utilities.
    """
    at_least(2)("passes", passes)
    one_of(*STOCHASTIC)("stochastic", stochastic)
    positive()("beta", beta)
    one_of(*DIVERSITY)("diversity", diversity)
    at_least(1)("preselect", preselect)
    diverse = diversity != "none"
    require(not (diverse and class_balanced), "class_balanced", "False with diversity", class_balanced)
    need: Need = "logits"
    if type(task) is not SingleLabel and not (isinstance(token, str) and token in _OF_FEATURES):
        return _of_task(task, token, passes, stochastic, beta, class_balanced, diversity, preselect)
    if isinstance(token, str) and token in _EXTRAPOLATED:
        needs: set[Need] = {"all_features", "dynamics"}
        if class_balanced:
            needs.add("logits")
        if diverse:
            pick = partial(_by_diversity, _extrapolated, stochastic, beta, diversity, preselect, True)
        else:
            pick = partial(_by_utility, _extrapolated, stochastic, beta, class_balanced)
        more = partial(_of_diversity, diversity, preselect) if diverse else None
        return Strategy(frozenset(needs), pick, dynamics=_EXTRAPOLATED[token], distances=more)
    if isinstance(token, str) and token in _SEQUENTIAL:
        reason = f"for {token}, which has no utilities"
        require(not diverse, "diversity", f"none {reason}", diversity)
        require(stochastic == "none", "stochastic", f"none {reason}", stochastic)
        require(not class_balanced, "class_balanced", f"False {reason}", class_balanced)
        return _SEQUENTIAL[token]
    if isinstance(token, str) and token in _UTILITIES:
        need, utility = _UTILITIES[token]
    elif isinstance(token, str) and ":" in token:
        utility = partial(_of_logits, _named(token))
    elif isinstance(token, str):
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {token!r}")
    elif callable(token):
        utility = partial(_of_logits, token)
    else:
        raise TypeError(f"strategy must be a name or a function, got {type(token).__name__}")
    if not diverse:
        pick = partial(_by_utility, utility, stochastic, beta, class_balanced)
        return Strategy(frozenset({need}), pick, passes if need == "ensemble" else 1)
    require(need == "logits", "diversity", f"none for {token}, whose passes give no features", diversity)
    # k-center keeps away from what is labeled, too.
    seen: Need = "all_features" if diversity == "k_center" else "features"
    pick = partial(_by_diversity, utility, stochastic, beta, diversity, preselect, seen == "all_features")
    return Strategy(frozenset({need, seen}), pick, distances=partial(_of_diversity, diversity, preselect))


_OF_FEATURES = frozenset({"random", "k_center", "typiclust", "probcover"})
"""Strategies that look at no outputs, so that they are for any task."""


def _of_task(
    task: Task,
    token: str | UtilityFunction,
    passes: int,
    stochastic: Stochastic,
    beta: float,
    class_balanced: bool,
    diversity: Diversity,
    preselect: int,
) -> Strategy:
    """A strategy of another task than classification."""
    kind = type(task).__name__
    require(
        not class_balanced,
        "class_balanced",
        f"False with {kind}, which predicts no one class",
        class_balanced,
    )
    if token == "variance" and isinstance(task, Regression):
        require(
            diversity == "none", "diversity", "none for variance, whose passes give no features", diversity
        )
        pick = partial(_by_utility, _variance, stochastic, beta, False)
        return Strategy(frozenset({"ensemble"}), pick, passes, ensemble=PassVariance)
    if isinstance(token, str) and token in _GREEDY and isinstance(task, Regression):
        for name, value in (("diversity", diversity), ("stochastic", stochastic)):
            require(value == "none", name, f"none for {token}, which has no utilities", value)
        pick = partial(_greedy, _GREEDY[token])
        return Strategy(frozenset({"logits", "all_features", "answers"}), pick)
    if isinstance(token, str) and token in task.strategies:
        of_outputs = partial(_utilities_of, task, token)
    elif isinstance(token, str) and ":" not in token:
        own = (*sorted(_OF_FEATURES), *task.strategies)
        own += ("variance", *_GREEDY) if isinstance(task, Regression) else ()
        raise ValueError(f"strategy must be one of {', '.join(own)} with {kind}, got {token!r}")
    elif isinstance(token, str) or callable(token):
        of_outputs = partial(_own_utilities, _named(token) if isinstance(token, str) else token)
    else:
        raise TypeError(f"strategy must be a name or a function, got {type(token).__name__}")
    if diversity == "none":
        pick = partial(_by_utility, _given, stochastic, beta, False)
        return Strategy(frozenset({"utilities"}), pick, of_outputs=of_outputs)
    seen: Need = "all_features" if diversity == "k_center" else "features"
    whole = seen == "all_features"
    pick = partial(_by_diversity, _given, stochastic, beta, diversity, preselect, whole)
    distances = partial(_of_diversity, diversity, preselect)
    return Strategy(frozenset({"utilities", seen}), pick, distances=distances, of_outputs=of_outputs)


def _utilities_of(task: Task, token: str, outputs: Any, inputs: Any) -> Tensor:
    found, samples = task.utilities(outputs, token, inputs), length_of(inputs)
    if not isinstance(found, Tensor) or found.shape != (samples,):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{type(task).__name__}.utilities must give one for each of {samples} samples, got {got}"
        )
    return found


def _own_utilities(function: Callable[[Any], Any], outputs: Any, inputs: Any) -> Tensor:
    """What a user's function makes of the outputs of a batch."""
    samples = length_of(inputs)
    utilities = as_tensor("the utility function's result", function(outputs))
    require_floating("the utility function's result", utilities)
    if utilities.shape != (samples,):
        raise ValueError(
            f"the utility function must return shape ({samples},), one utility for every sample, got {tuple(utilities.shape)}"
        )
    return utilities
