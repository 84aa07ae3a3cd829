"""Scores without labels: training dynamics of a clustering head on frozen features, against what it says in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse._options import at_least, check_fields, checked, positive, require
from prunefuse._seeds import generator
from prunefuse.data._batches import batch_count, shuffled
from prunefuse.dynamics._options import Score
from prunefuse.dynamics._recorder import Recorder
from prunefuse.extrapolation._interface import BLOCK_ROWS
from prunefuse.extrapolation._neighbors import magnitude, nearest_neighbors, require_rows
from prunefuse.ops.arrays import like
from prunefuse.ops.integers import as_integers, rows_of_mask
from prunefuse.training._recipe import Recipe

_RECIPE = Recipe(
    epochs=60,
    min_steps=400,
    batch_size=256,
    lr=0.3,
    momentum=0.0,
    weight_decay=0.0,
    schedule="one-cycle",
    warmup=0.0,
)


@dataclass(frozen=True)
class Clustering:
    """How a head learns clusters: by predicting a neighbor's balanced assignment from the sample, and the other way round.

    >>> from prunefuse.extrapolation import Clustering
    >>> settings = Clustering(clusters=20, neighbors=10)

    Logits are cosines to one prototype per cluster over ``temperature``. Targets are a neighbor's cosines over
    ``sharpness``. Sinkhorn and Knopp's iterations bring the targets to where every cluster has the same share of the batch.
    So they cannot collapse into one cluster. Neighbors are the nearest features.

    Loss and balancing are SwAV's, with its temperature, sharpness and iterations; neighbors are SCAN's. What else is done,
    and why, is in docs/paper.md.

    Attributes:
        clusters: How many there are, two or more.
        neighbors: The nearest samples of each sample, one of which is drawn at every step.
        temperature: That of the predictions, whose probabilities are scored.
        sharpness: That of the targets. Near or above the temperature the head learns little.
        iterations: Those of balancing.
        recipe: How the head is trained. ``autocast`` and ``channels_last`` do not apply. A batch must have a sample for
            every cluster.

    References:
        Caron et al. 2020, *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments* (SwAV).
        Van Gansbeke et al. 2020, *SCAN: Learning to Classify Images without Labels*.
    """

    clusters: int = field(default=10, metadata=checked(at_least(2)))
    neighbors: int = field(default=20, metadata=checked(at_least(1)))
    temperature: float = field(default=0.1, metadata=checked(positive()))
    sharpness: float = field(default=0.05, metadata=checked(positive()))
    iterations: int = field(default=3, metadata=checked(at_least(1)))
    recipe: Recipe = field(default=_RECIPE, metadata=checked())

    def __post_init__(self) -> None:
        check_fields(self)


class ClusterHead(nn.Module):
    """Logits (N, clusters) of embeddings (N, d): after centering, cosines to the prototypes, over the temperature.

    >>> from prunefuse.extrapolation import ClusterHead
    >>> head = ClusterHead(mean=torch.zeros(2), prototypes=torch.eye(2), temperature=0.5)
    >>> head(torch.tensor([[3.0, 0.0]])).tolist()
    [[2.0, 0.0]]
    """

    mean: Tensor

    def __init__(self, mean: Tensor, prototypes: Tensor, temperature: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.prototypes = nn.Parameter(prototypes)
        self.temperature = temperature

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, d) -> (N, clusters)."""
        return self.of_directions(self.directions(embeddings))

    def directions(self, embeddings: Tensor) -> Tensor:
        """Centered embeddings of length 1."""
        return functional.normalize(embeddings.to(self.mean.dtype) - self.mean, dim=1)

    def of_directions(self, directions: Tensor) -> Tensor:
        """`forward` from `directions`."""
        return directions @ functional.normalize(self.prototypes, dim=1).T / self.temperature


@dataclass(frozen=True)
class ClusterScores:
    """What `score_clusters` returns.

    >>> from prunefuse.extrapolation import ClusterScores
    >>> sorted(ClusterScores.__annotations__)
    ['head', 'labels', 'scores']

    Attributes:
        scores: (N,) by name, float64, NaN where a sample was not scored.
        labels: (n,) int64: the final pseudo-labels of the samples that were scored, in the order in which these were given.
        head: The trained head.
    """

    scores: dict[str, Any]
    labels: Any
    head: ClusterHead


def balance(cosines: Tensor, sharpness: float, iterations: int) -> Tensor:
    """Assignments (B, C), rows of sum 1, in which clusters have nearly equal sums; the more iterations, the nearer."""
    logs = cosines / sharpness
    for _ in range(iterations):
        logs = logs - logs.logsumexp(0)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


def score_clusters(
    embeddings: Any,
    clustering: Clustering,
    scores: Sequence[str] | Mapping[str, Score] = ("du",),
    *,
    subset: Any = None,
    seed: int = 0,
    on_epoch: Callable[[ClusterHead], None] | None = None,
) -> ClusterScores:
    """Scores of samples without labels, by how a clustering head on frozen features came to its final pseudo-labels.

    >>> from prunefuse.extrapolation import Clustering, score_clusters
    >>> recipe = prunefuse.Recipe(epochs=12, batch_size=32, lr=0.3, schedule="one-cycle")
    >>> found = score_clusters(torch.randn(64, 8), Clustering(clusters=4, neighbors=5, recipe=recipe))
    >>> found.scores["du"].shape, found.labels.shape
    (torch.Size([64]), torch.Size([64]))

    A pseudo-label is the most probable cluster after the last epoch. The scores are those of `Recorder` with pseudo-labels
    as labels, from a pass over the samples after every epoch. No label of the data set is seen.

    Pseudo-labels are known only when training is over, so the head is trained twice. The second training repeats the first
    and is recorded. So the state is the recorder's: n · window numbers for ``du`` and not n · clusters · window. Beside it
    are n · (2 d + neighbors) numbers: the subset, its directions, its neighbors. An epoch takes 12 · n · d · clusters FLOPs
    (two views), a recorded one 14. Before them comes one search for neighbors.

    Scores depend on where the head starts. On the pixels of digits, dynamic uncertainties by two seeds had a median
    correlation of 0.2 (−0.26 to 0.70, 360 pairs). Means over eight seeds had 0.47 to 0.77 (3 pairs). Such a mean takes a
    loop over ``seed``.

    Args:
        embeddings: (N, d) floating, as of `prunefuse.features`, also memory-mapped. Only the subset is read.
        clustering: How the head is trained.
        scores: As for `Recorder`, but not ``grand``.
        subset: (n,) integers: the samples to learn from and to score. None takes all.
        seed: Fixes prototypes, order and neighbors. Global generators are not touched.
        on_epoch: Called with the head after every epoch of the recorded training. It must not change the head.

    Raises:
        TypeError: Embeddings are not floating, or the subset is not of integers.
        ValueError: Embeddings of the subset are not finite. Or the subset is out of range, repeats a sample, or has too few
            samples for the neighbors or clusters. Or there are too few epochs for a score.
        RuntimeError: The second training ended with other pseudo-labels: the device does not repeat itself bit for bit.
    """
    whole = require_rows("embeddings", embeddings)
    rows = _rows_of(subset, whole)
    x = whole[rows]
    if x.dtype != torch.float64:
        x = x.float()
    _check(x, rows, clustering)
    recorder = Recorder(len(x), scores, classes=clustering.clusters, device=x.device, forward="evaluation")
    mean = x.mean(0)
    z = _head(mean, clustering, seed).directions(x)
    # Each finds itself first, or a sample like it.
    near = nearest_neighbors(z, z, clustering.neighbors + 1)[1][:, 1:]
    labels = _labels(_train(_head(mean, clustering, seed), z, near, clustering, seed, lambda _: None), z)

    def record(head: ClusterHead) -> None:
        for block in torch.arange(len(z)).split(BLOCK_ROWS):
            with torch.no_grad():
                logits = head.of_directions(z[block.to(z.device)])
            recorder.update(logits, labels[block.to(z.device)], block)
        recorder.end_epoch()
        if on_epoch is not None:
            on_epoch(head)

    head = _train(_head(mean, clustering, seed), z, near, clustering, seed, record)
    if not torch.equal(_labels(head, z), labels):
        raise RuntimeError(
            f"the second training ended with other pseudo-labels: {x.device} does not repeat itself, "
            "or on_epoch changed the head"
        )
    complete = {}
    for name, values in recorder.scores().items():
        all_of = torch.full((len(whole),), torch.nan, dtype=torch.float64, device=x.device)
        all_of[rows.to(x.device)] = values
        complete[name] = like(embeddings, all_of)
    return ClusterScores(complete, like(embeddings, labels), head)


def _check(x: Tensor, rows: Tensor, clustering: Clustering) -> None:
    magnitude("embeddings", x, lambda row: int(rows[row]))
    few = f"fewer than the {len(x)} samples"
    require(clustering.neighbors < len(x), "neighbors", few, clustering.neighbors)
    smallest = len(x) // batch_count(len(x), clustering.recipe.batch_size)
    most = f"at most {smallest}, the samples of the smallest batch"
    require(clustering.clusters <= smallest, "clusters", most, clustering.clusters)


def _train(
    head: ClusterHead,
    directions: Tensor,
    near: Tensor,
    clustering: Clustering,
    seed: int,
    on_epoch: Callable[[ClusterHead], None],
) -> ClusterHead:
    recipe, count = clustering.recipe, len(directions)
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    rng = generator(seed, "clustering", "order")
    epochs, per_epoch = recipe.epochs_for(count), batch_count(count, recipe.batch_size)
    for epoch in range(epochs):
        for number, batch in enumerate(shuffled(count, recipe.batch_size, rng)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch * per_epoch + number, epochs * per_epoch)
            drawn = torch.randint(near.shape[1], (len(batch.positions),), generator=rng)
            own = batch.positions.to(directions.device)
            other = near[own, drawn.to(directions.device)]
            a, b = head.of_directions(directions[own]), head.of_directions(directions[other])
            loss = (_swapped(a, b, clustering) + _swapped(b, a, clustering)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        on_epoch(head)
    return head


def _swapped(logits: Tensor, view: Tensor, clustering: Clustering) -> Tensor:
    """Cross-entropy of the balanced assignments of the other view."""
    cosines = view.detach() * clustering.temperature
    return functional.cross_entropy(logits, balance(cosines, clustering.sharpness, clustering.iterations))


def _head(mean: Tensor, clustering: Clustering, seed: int) -> ClusterHead:
    rng = generator(seed, "clustering", "prototypes")
    prototypes = torch.randn(clustering.clusters, len(mean), generator=rng, dtype=mean.dtype)
    return ClusterHead(mean, functional.normalize(prototypes, dim=1).to(mean.device), clustering.temperature)


def _labels(head: ClusterHead, directions: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([head.of_directions(block).argmax(1) for block in directions.split(BLOCK_ROWS)])


def _rows_of(subset: Any, embeddings: Tensor) -> Tensor:
    if subset is None:
        return torch.arange(len(embeddings), device=embeddings.device)
    rows = as_integers("subset", subset)
    if rows.dtype == torch.bool:
        rows = rows_of_mask("subset", rows, len(embeddings), "embeddings")
    if len(rows) == 0:
        raise ValueError(f"subset must have shape (rows,), not empty, got {tuple(rows.shape)}")
    if int(rows.min()) < 0 or int(rows.max()) >= len(embeddings) or len(rows.unique()) != len(rows):
        raise ValueError(f"subset must be of 0 to {len(embeddings) - 1}, each once")
    return rows.to(embeddings.device, torch.int64)
