"""The work of the operators in plain torch, as an expert would write it: the fastest forms known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def scores_eager(logits: Tensor) -> Tensor:
    """The three scores (3, N): one log-softmax, two maxima."""
    log_p = torch.log_softmax(logits, 1, dtype=torch.float32)
    p = log_p.exp()
    entropy = -log_p.mul_(p).sum(1)
    p1, first = p.max(1)
    p2 = p.scatter_(1, first.unsqueeze(1), -1).amax(1)
    return torch.stack((1 - p1, 1 - p1 + p2, entropy))


def scores_topk(logits: Tensor) -> Tensor:
    """The three scores (3, N), as most code finds the margin: with topk."""
    p = torch.softmax(logits, 1, dtype=torch.float32)
    two = p.topk(2, 1).values
    entropy = torch.special.entr(p).sum(1)
    return torch.stack((1 - two[:, 0], 1 - two[:, 0] + two[:, 1], entropy))


def scores_fusible(logits: Tensor) -> Tensor:
    """The three scores (3, N) as reductions that a compiler can fuse: one log-sum-exp, two masked maxima."""
    x = logits.float()
    largest, second = _two_largest(x)
    shifted = x - largest.unsqueeze(1)
    e = shifted.exp()
    total = e.sum(1)
    p1 = total.reciprocal()
    p2 = (second - largest).exp() * p1
    entropy = total.log() - (e * shifted).sum(1) * p1
    return torch.stack((1 - p1, 1 - p1 + p2, entropy))


def statistics_fusible(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arg-max, log-sum-exp and the two largest probabilities of each row (N, C), float32."""
    largest, second = _two_largest(logits)
    logsumexp = logits.logsumexp(1)
    return logits.argmax(1), logsumexp, (largest - logsumexp).exp(), (second - logsumexp).exp()


def entropy_eager(logits: Tensor) -> Tensor:
    """The entropy (N,) by one log-softmax."""
    log_p = torch.log_softmax(logits, 1)
    return -log_p.mul_(log_p.exp()).sum(1)


def entropy_fusible(logits: Tensor) -> Tensor:
    """The entropy (N,) as reductions that a compiler can fuse."""
    shifted = logits - logits.amax(1, keepdim=True)
    e = shifted.exp()
    total = e.sum(1)
    return total.log() - (e * shifted).sum(1) / total


def ensemble(logits: Tensor) -> Tensor:
    """BALD, predictive entropy, variation ratio and mean entropy (4, N) of the passes (S, N, C)."""
    log_p = torch.log_softmax(logits, 2)
    p = log_p.exp()
    predictive = torch.special.entr(p.mean(0)).sum(1)
    mean_entropy = -(log_p * p).sum(2).mean(0)
    votes = logits.argmax(2)
    most = (votes.unsqueeze(0) == votes.unsqueeze(1)).sum(1).amax(0)  # agreeing with a pass, itself included
    return torch.stack((predictive - mean_entropy, predictive, 1 - most / len(logits), mean_entropy))


def masked_mean(scores: Tensor, mask: Tensor) -> Tensor:
    """Of scores (K, N·T) the mean (K, N) over the tokens that a mask (N, T) leaves."""
    return (scores.view(-1, *mask.shape) * mask).sum(2) / mask.sum(1)


def next_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Margin, entropy and loss of the target (3, N): one log-softmax, two maxima."""
    log_p = torch.log_softmax(logits, 1, dtype=torch.float32)
    loss = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    p = log_p.exp()
    entropy = -log_p.mul_(p).sum(1)
    p1, first = p.max(1)
    p2 = p.scatter_(1, first.unsqueeze(1), -1).amax(1)
    return torch.stack((1 - p1 + p2, entropy, loss))


def labels_mean(logits: Tensor) -> Tensor:
    """The three scores of independent labels (N, L), their means (3, N)."""
    p = torch.sigmoid(logits)
    least = torch.minimum(p, 1 - p)
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)
    return torch.stack((least.mean(1), 2 * least.mean(1), entropy.mean(1)))


def pixels_mean(logits: Tensor) -> Tensor:
    """The three scores of pixels (N, C, H, W), their means (3, N)."""
    log_p = torch.log_softmax(logits, 1)
    p = log_p.exp()
    entropy = -log_p.mul_(p).sum(1)
    p1, first = p.max(1)
    p2 = p.scatter_(1, first.unsqueeze(1), -1).amax(1)
    return torch.stack(tuple(one.mean((1, 2)) for one in (1 - p1, 1 - p1 + p2, entropy)))


def boxes_max(logits: Tensor, image_of_box: Tensor, images: int) -> Tensor:
    """The three scores of boxes (B, C), their maxima (3, N) by image."""
    scores = scores_eager(logits)
    index = image_of_box.expand_as(scores)
    return scores.new_zeros(3, images).scatter_reduce(1, index, scores, "amax", include_self=True)


def dynamics(logits: Tensor, labels: Tensor) -> Tensor:
    """What rows say of their labels (6, N): probability, 1 - that, loss, margin, EL2N, correct."""
    own = labels.unsqueeze(1)
    log_p = torch.log_softmax(logits, 1)
    log_own = log_p.gather(1, own).squeeze(1)
    p_own = log_own.exp()
    margin = logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -torch.inf).amax(1)
    squares = log_p.exp().square().sum(1) - p_own.square() + (1 - p_own).square()
    correct = (logits.argmax(1) == labels).to(logits.dtype)
    return torch.stack((p_own, 1 - p_own, -log_own, margin, squares.clamp_min(0).sqrt(), correct))


def divergence_(before: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Sum of |q (log q - log q_before)| (B,) with 1e-8 in the logarithms; replaces rows of the probabilities ``before``."""
    q = torch.softmax(logits, 1)
    result = (q * ((q + 1e-8).log() - (before[rows] + 1e-8).log())).abs().sum(1)
    before[rows] = q
    return result


def _two_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    largest, where = x.max(1, keepdim=True)
    others = torch.arange(x.shape[1], device=x.device) != where
    return largest.squeeze(1), torch.where(others, x, -torch.inf).amax(1)


def k_center_step(features: Tensor, norms: Tensor, nearest: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Shortens the squared distances to the nearest center by one more center; returns them and the farthest row."""
    c = features.index_select(0, center).squeeze(0)
    distances = norms + norms[center] - 2 * torch.mv(features, c)
    nearest = torch.minimum(nearest, distances)
    return nearest, nearest.argmax().unsqueeze(0)


def k_means_plus_plus(residuals: Tensor, features: Tensor, draws: Tensor) -> Tensor:
    """Rows (b,) by k-means++ on outer products, with distances from norms and matrix products."""
    norms = residuals.square().sum(1) * features.square().sum(1)
    nearest = torch.full_like(norms, torch.inf, dtype=torch.float64)
    picks = torch.empty(len(draws), dtype=torch.int64, device=features.device)
    pick = norms.argmax(0, keepdim=True)
    for i in range(len(draws)):
        if i > 0:
            cumulative = nearest.cumsum(0)
            pick = torch.searchsorted(cumulative, draws[i : i + 1] * cumulative[-1], right=True)
        picks[i : i + 1] = pick
        products = torch.mv(residuals, residuals[pick][0]) * torch.mv(features, features[pick][0])
        distances = (norms + norms[pick] - 2 * products).clamp_min_(0)
        nearest = torch.minimum(nearest, distances).index_fill_(0, pick, 0)
    return picks


def by_product(points: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each point, by norms and a matrix product, in blocks that stay in a cache."""
    norms = centers.square().sum(1)
    return torch.cat([torch.addmm(norms, part, centers.T, alpha=-2).argmin(1) for part in points.split(2048)])


def by_cdist(points: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each point, as most code finds it."""
    return torch.cdist(points, centers).argmin(1)


def lloyd(points: Tensor, start: Tensor, moves: int, assign: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Centers after so many of Lloyd's iterations."""
    centers = start
    for _ in range(moves):
        labels = assign(points, centers)
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        counts = torch.bincount(labels, minlength=len(centers))[:, None]
        centers = torch.where(counts > 0, sums / counts, centers)
    return centers


def squared_to_nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Squared distances (N,) of points to the nearest of centers of float64."""
    nearest = centers[by_product(points.double(), centers)]
    return (points.double() - nearest).square().sum(1)


def greedy_cover(features: Tensor, b: int, delta: float) -> Tensor:
    """Rows (b,) whose balls cover the most, with all pairs kept as the published code keeps them."""
    within = torch.cdist(features, features) <= delta
    gains = within.sum(1)
    picks = torch.empty(b, dtype=torch.int64, device=features.device)
    covered = torch.zeros_like(within[0])
    place = torch.arange(len(gains), device=gains.device)
    for i in range(b):
        picks[i] = (gains * len(gains) - place).argmax()
        new = within[picks[i]] & ~covered
        covered |= new
        gains -= within[new].sum(0)
    return picks


def index_tensors(
    dense: Sequence[Tensor], kept: Sequence[Sequence[Tensor | None]]
) -> list[tuple[Tensor, ...]]:
    """Of every tensor the kept positions, as index tensors that broadcast; none where all of it is kept."""
    places: list[tuple[Tensor, ...]] = []
    for tensor, axes in zip(dense, kept, strict=True):
        if all(axis is None for axis in axes):
            places.append(())
            continue
        rows = [
            torch.arange(n, device=tensor.device) if axis is None else axis
            for n, axis in zip(tensor.shape, axes, strict=True)
        ]
        places.append(tuple(row.view(-1, *[1] * (len(rows) - i - 1)) for i, row in enumerate(rows)))
    return places


def index_put_loop(
    dense: Sequence[Tensor], small: Sequence[Tensor], places: Sequence[tuple[Tensor, ...]]
) -> None:
    """Writes every small tensor into its dense one, parameter by parameter; see `index_tensors`."""
    for to, source, at in zip(dense, small, places, strict=True):
        if at:
            to.index_put_(at, source)
        else:
            to.copy_(source)
