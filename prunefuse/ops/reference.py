"""Every operator in plain torch: what the kernels must compute, for reading, for testing and where no kernel exists.

These work on any device and in any floating dtype; the tests call them in float64. They make no attempt to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, probabilities: bool, temperature: float) -> Tensor:
    """Log-probabilities (N, C); NaN throughout a row that holds a NaN or no value above -inf."""
    x = logits.log() if probabilities else logits
    x = torch.where(x.isnan().any(1, keepdim=True), torch.nan, x)
    infinite = x == torch.inf
    # +inf classes share the mass: they are equal, everything else is masked.
    x = torch.where(infinite.any(1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), x)
    return torch.log_softmax(x / temperature, dim=1)


def score(logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float) -> Tensor:
    """See `prunefuse::score`: (K, N)."""
    log_p = log_probabilities(logits, probabilities, temperature)
    p = log_p.exp()
    two = p.topk(min(2, p.shape[1]), dim=1).values
    p1, p2 = two[:, 0], two[:, 1] if p.shape[1] > 1 else torch.zeros_like(two[:, 0])
    # 0 * -inf is NaN where the limit is 0: masked classes contribute nothing.
    entropy = -torch.where(log_p == -torch.inf, 0.0, p * log_p).sum(1)
    invalid = p1.isnan()
    x = logits.log() if probabilities else logits
    energy = -temperature * torch.logsumexp(x / temperature, 1)
    most = x.topk(min(2, x.shape[1]), dim=1).values
    gap = most[:, 1] - most[:, 0] if x.shape[1] > 1 else torch.full_like(most[:, 0], -torch.inf)
    gap = torch.where(most[:, 0] == most[:, -1], 0.0, gap) if x.shape[1] > 1 else gap
    table = (
        1 - p1,
        1 - (p1 - p2),
        entropy,
        torch.where(invalid, torch.nan, energy),
        torch.where(invalid, torch.nan, gap),
    )
    return torch.stack([table[k] for k in strategies])


def absorb_(state: Tensor, logits: Tensor, temperature: float) -> None:
    """See `prunefuse::absorb_`, for logits without +inf."""
    top, second, ties, tail, dot, nan = state.unbind()
    both = torch.cat([torch.stack([top, second], 1), logits.to(state.dtype)], 1)
    both = torch.where(both.isnan(), -torch.inf, both)
    highest = torch.maximum(top, both[:, 2:].amax(1))
    seen = torch.where(top == -torch.inf, 0.0, torch.exp((top - highest) / temperature))
    z = torch.where(both[:, 2:] == -torch.inf, 0.0, (both[:, 2:] - highest[:, None]) / temperature)
    e = torch.where(both[:, 2:] == -torch.inf, 0.0, z.exp())
    equal = both[:, 2:] == highest[:, None]
    mass = ties + tail
    shift = torch.where(seen == 0, 0.0, (top - highest) / temperature)
    leads = top == highest
    state[0], state[1] = highest, both.topk(2, 1).values[:, 1]
    state[2] = torch.where(leads, ties, 0.0) + equal.sum(1)
    state[3] = torch.where(leads, tail, seen * mass) + torch.where(equal, 0.0, e).sum(1)
    state[4] = seen * (dot + mass * shift) + (e * z).sum(1)
    state[5] = torch.maximum(nan, logits.isnan().any(1).to(state.dtype))


def statistics(
    logits: Tensor, probabilities: bool, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `prunefuse::statistics`."""
    p = log_probabilities(logits, probabilities, temperature).exp()
    two = p.topk(min(2, p.shape[1]), dim=1).values
    p1, p2 = two[:, 0], two[:, 1] if p.shape[1] > 1 else torch.zeros_like(two[:, 0])
    x = logits.log() if probabilities else logits
    invalid = p1.isnan()
    argmax = torch.where(invalid, -1, (x == x.max(1, keepdim=True).values).int().argmax(1))
    logsumexp = torch.where(invalid, torch.nan, torch.logsumexp(x / temperature, 1))
    return argmax, logsumexp, p1, torch.where(invalid, torch.nan, p2)


def score_ensemble(
    logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float
) -> Tensor:
    """See `prunefuse::score_ensemble`: (K, N)."""
    log_p = torch.stack([log_probabilities(one, probabilities, temperature) for one in logits])
    p = log_p.exp()
    mean = p.mean(0)
    mean_entropy = -torch.where(log_p == -torch.inf, 0.0, p * log_p).sum(2).mean(0)
    predictive = -torch.where(mean == 0, 0.0, mean * mean.log()).sum(1)
    best = p.max(2, keepdim=True).values
    votes = torch.zeros_like(mean, dtype=torch.int64)
    for one, top in zip(p, best, strict=True):
        votes.scatter_add_(1, (one == top).int().argmax(1, keepdim=True), torch.ones_like(votes[:, :1]))
    variation = torch.where(predictive.isnan(), torch.nan, 1 - votes.amax(1).to(p.dtype) / len(logits))
    table = ((predictive - mean_entropy).clamp_min(0), predictive, variation, mean_entropy)
    return torch.stack([table[k].to(log_p.dtype) for k in strategies])


def ensemble_add_(
    sums: Tensor, votes: Tensor, entropies: Tensor, logits: Tensor, probabilities: bool, temperature: float
) -> None:
    """See `prunefuse::ensemble_add_`."""
    p = log_probabilities(logits, probabilities, temperature).exp().to(sums.dtype)
    valid = ~p.isnan().any(1)
    rows = valid.nonzero()[:, 0]
    sums += p
    votes[rows, (p[rows] == p[rows].max(1, keepdim=True).values).int().argmax(1)] += 1
    entropies += score(logits, [2], probabilities, temperature)[0].to(entropies.dtype)


def top_b(utilities: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """See `prunefuse::top_b`."""
    order = torch.where(utilities.isnan(), -torch.inf, utilities).sort(descending=True, stable=True).indices
    order = order[~utilities[order].isnan()][:b]
    indices = torch.full((b,), -1, dtype=torch.int64, device=utilities.device)
    values = utilities.new_full((b,), torch.nan)
    indices[: len(order)] = order
    values[: len(order)] = utilities[order]
    return indices, values


def keep_best_(
    best: Tensor,
    indices: Tensor,
    threshold: Tensor,
    counts: Tensor,
    b: int,
    batch: Tensor,
    batch_indices: Tensor | None,
) -> None:
    """See `prunefuse::keep_best_`; forgets all but the b best every time."""
    count, unselectable, highest = counts.tolist()
    if batch_indices is None:
        batch_indices = torch.arange(highest + 1, highest + 1 + len(batch))
    every, order = torch.cat([indices[:count], batch_indices]).sort(stable=True)
    utilities = torch.cat([best[:count], batch])[order]
    nan = int(batch.isnan().sum())
    left = min(b, len(utilities) - nan)
    positions, best[:left] = top_b(utilities, left)
    indices[:left] = every[positions]
    counts.copy_(torch.tensor([left, unselectable + nan, max([highest, *batch_indices.tolist()])]))
    if left == b:
        threshold.copy_(best[b - 1])


def k_center_greedy(features: Tensor, labeled: Tensor, b: int, start: int) -> Tensor:
    """See `prunefuse::k_center_greedy`; without a look at the values, so that no device is waited for."""
    usable = features.square().sum(1).isfinite()
    nearest = torch.where(usable, torch.inf, -1.0).to(features.dtype)
    nearest[labeled] = -1

    def add(center: Tensor) -> None:
        """Takes one center (a (1,) index) out of the pool and shortens the distances to it."""
        nearest[center] = -1
        distances = (features - features[center]).square().sum(1)
        reachable = (nearest >= 0) & usable[center]
        nearest.copy_(torch.where(reachable, torch.minimum(nearest, distances), nearest))

    for i in range(len(labeled)):
        add(labeled[i : i + 1])
    picks = torch.full((b,), -1, dtype=torch.int64, device=features.device)
    for i in range(b):
        best, pick = nearest.max(0, keepdim=True)
        if i == 0 and start >= 0:
            best, pick = torch.full_like(best, torch.inf), torch.full_like(pick, start)
        # Past the last selectable row: record -1; adding that row again changes nothing.
        picks[i : i + 1] = torch.where(best >= 0, pick, -1)
        add(pick)
    return picks


def k_means_plus_plus(residuals: Tensor, features: Tensor, draws: Tensor) -> Tensor:
    """See `prunefuse::k_means_plus_plus`; distances from the embeddings themselves."""
    embeddings = (residuals[:, :, None] * features[:, None, :]).flatten(1)
    available = residuals.square().sum(1).isfinite() & features.square().sum(1).isfinite()
    norms = embeddings.square().sum(1).where(available, -1)
    nearest = torch.full_like(norms, torch.inf, dtype=torch.float64)
    picks = torch.full((len(draws),), -1, dtype=torch.int64, device=features.device)
    for i in range(min(len(draws), int(available.sum()))):
        weights = nearest.where(available, 0)
        weights = weights if bool((weights > 0).any()) else available.double()
        cumulative = weights.cumsum(0)
        if i == 0:
            pick = int((norms == norms.amax()).int().argmax())
        else:
            # Rounding may have brought the target to the total.
            pick = int((cumulative > draws[i] * cumulative[-1]).int().argmax())
            pick = pick if cumulative[pick] > draws[i] * cumulative[-1] else int(weights.nonzero()[-1])
        picks[i] = pick
        available[pick] = False
        distances = (embeddings - embeddings[pick]).square().sum(1).double()
        nearest = torch.minimum(nearest, distances)
    return picks


def nearest_neighbors(
    queries: Tensor, references: Tensor, k: int, cosine: bool, scale: float, input_roundoff: float
) -> tuple[Tensor, Tensor]:
    """See `prunefuse::nearest_neighbors`; every distance from differences, a query at a time."""
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    x, y = queries.double() * scale, references.double() * scale
    if cosine:
        x, y = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) for rows in (x, y))
    found = []
    for query in x:
        squared = (query - y).square().sum(1)
        if cosine:
            zero = ~query.any() | ~y.any(1)
            squared = torch.where(zero, 2.0, squared)
        found.append(squared.sort(stable=True))
    if not found:
        return queries.new_empty((0, k), dtype=dtype), queries.new_empty((0, k), dtype=torch.int64)
    squared = torch.stack([values[:k] for values, _ in found])
    distances = squared / 2 if cosine else squared.sqrt() / scale
    return distances.to(dtype), torch.stack([order[:k] for _, order in found])


def dynamics(logits: Tensor, labels: Tensor) -> Tensor:
    """See `prunefuse::dynamics`."""
    log_p = log_probabilities(logits, False, 1.0)
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    p = log_p.exp()
    others = torch.where(own, 0.0, p)
    error = others.sum(1)
    label = logits.gather(1, labels[:, None])[:, 0]
    rival = torch.where(own, -torch.inf, logits).amax(1)
    margin = torch.where(label == rival, 0.0, label - rival)
    correct = (logits == logits.amax(1, keepdim=True)).int().argmax(1) == labels
    table = (
        p.gather(1, labels[:, None])[:, 0],
        error,
        -log_p.gather(1, labels[:, None])[:, 0],
        margin,
        torch.hypot(error, others.norm(dim=1)),
        correct.to(p.dtype),
    )
    return torch.where(p[:, 0].isnan(), torch.nan, torch.stack(table))


def claim_(seen: Tensor, rejected: Tensor, indices: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """See `prunefuse::claim_`, where nothing is wrong with the batch."""
    seen[indices] = 1
    return indices.clone()


def divergence_(kept: Tensor, logits: Tensor, samples: Tensor, epsilon: float) -> Tensor:
    """See `prunefuse::divergence_`."""
    p = log_probabilities(logits.double(), False, 1.0).exp()
    logs = (p + epsilon).log()
    before = kept[samples].double()
    result = (p * (logs - before)).abs().sum(1)
    result = torch.where((before[:, 0] == 1) | (samples < 0), -1.0, result)
    used = samples >= 0
    kept[samples[used]] = logs[used].to(kept.dtype)
    return result


def push_(
    ring: Tensor,
    counts: Tensor,
    sums: Tensor,
    values: Tensor,
    samples: Tensor,
    window: int,
    divisor: float,
    keep: float,
    gain: float,
) -> None:
    """See `prunefuse::push_`."""
    size = ring.shape[1]
    for value, sample in zip(values.tolist(), samples.tolist(), strict=True):
        if sample < 0:
            continue
        count = int(counts[sample])
        ring[sample, count % size] = value
        counts[sample] += 1
        if count + 1 < size:
            continue
        order = [(count + 1 + i) % size for i in range(window)]
        x = ring[sample, order]
        spread = ((x - x.mean()).square().sum() / divisor).sqrt()
        sums[:, sample] = keep * sums[:, sample] + gain * torch.stack((spread, spread * (1 - x.mean())))


def scatter_(
    dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Tensor], kept_of_axis: Sequence[int]
) -> None:
    """See `prunefuse::scatter_`."""
    axes = iter(kept_of_axis)
    for to, source in zip(dense, small, strict=True):
        rows = [torch.arange(n, device=to.device) if (k := next(axes)) < 0 else kept[k] for n in to.shape]
        if not rows:
            to.copy_(source)
            continue
        to[torch.meshgrid(*rows, indexing="ij")] = source
