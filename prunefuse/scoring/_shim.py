import torch

from prunefuse.scoring._scores import score


def _red(u, reduction, threshold):
    if reduction == "mean":
        return u.mean(1)
    if reduction == "max":
        return u.amax(1)
    if reduction == "sum":
        return u.sum(1)
    r = (u > threshold).float()
    return r.mean(1) if reduction == "share" else r.sum(1)


def score_labels(
    logits, strategy="entropy", *, reduction="mean", threshold=None, probabilities=False, temperature=1.0
):
    x = logits
    if probabilities:
        x = torch.logit(x.double().clamp(1e-12, 1 - 1e-12)).float()
    rows = torch.stack((x, torch.zeros_like(x)), -1).reshape(-1, 2)
    return _red(score(rows, strategy).view(x.shape), reduction, threshold)


def score_pixels(logits, strategy="entropy", *, reduction="mean", threshold=None):
    n, c = logits.shape[:2]
    return _red(
        score(logits.movedim(1, -1).reshape(-1, c).contiguous(), strategy).view(n, -1), reduction, threshold
    )


def score_boxes(
    rows,
    offsets=None,
    strategy="entropy",
    *,
    independent=True,
    reduction="max",
    threshold=None,
    probabilities=False,
    empty=0.0,
):
    return torch.stack(
        [
            score_labels(
                r.flatten()[None],
                strategy,
                reduction=reduction,
                threshold=threshold,
                probabilities=probabilities,
            )[0]
            if len(r)
            else torch.tensor(empty)
            for r in rows
        ]
    )
