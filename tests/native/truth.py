"""What every operator must compute, by its definition, independently of the package: float64 in NumPy, sorts, loops."""

import math

import numpy as np
import torch

import prunefuse
from prunefuse import ops

NAMES = ("least_confidence", "margin", "entropy")
RAW = ("energy", "logit_margin")  # in units of logits: their error is relative to the logits' size
ENSEMBLE_NAMES = ("bald", "predictive_entropy", "variation_ratio", "mean_entropy")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SCATTER_DTYPES = (
    *DTYPES,
    torch.int64,
    torch.uint8,
    torch.complex128,
)


def of_rows(logits, temperature=1.0):
    """Utilities and statistics of rows in float64; precise for saturated rows too (1 - p1 is summed, not subtracted)."""
    x = logits.double().cpu().numpy()
    rows = {name: np.full(len(x), np.nan) for name in (*NAMES, *RAW, "logsumexp", "p1", "p2")}
    rows["argmax"] = np.full(len(x), -1)
    for i, row in enumerate(x):
        if np.isnan(row).any() or not (row > -np.inf).any():
            continue
        top = row.max()
        rows["argmax"][i] = int(np.argmax(row))
        if top == np.inf:
            z = np.where(row == np.inf, 0.0, -np.inf)
        else:
            with np.errstate(over="ignore"):
                z = (row - top) / temperature
        e = np.sort(np.exp(z))[::-1]
        rest = math.fsum(e[1:])
        total = 1 + rest
        runner_up = e[1] if len(e) > 1 else 0.0
        rows["least_confidence"][i] = rest / total
        rows["margin"][i] = (rest + runner_up) / total
        finite = z > -np.inf
        rows["entropy"][i] = math.log1p(rest) - math.fsum(np.exp(z[finite]) * z[finite]) / total
        rows["logsumexp"][i] = top / temperature + math.log1p(rest)
        rows["energy"][i] = -(top + temperature * math.log1p(rest))
        second = np.sort(row)[-2] if len(row) > 1 else -math.inf
        rows["logit_margin"][i] = 0.0 if second == top else second - top
        rows["p1"][i] = 1 / total
        rows["p2"][i] = runner_up / total
    return rows


def eps(dtype):
    return 2.0**-52 if dtype == torch.float64 else 2.0**-23


def assert_scores(logits, temperature=1.0, device="cpu", probabilities=False, expected=None, slack=4):
    """Every utility and statistic; `slack`, a number or one per row, is in units of eps ln C."""
    expected = expected or of_rows(logits, temperature)
    # What float32 cannot hold is infinite in its results.
    largest = np.finfo(np.float64 if logits.dtype == torch.float64 else np.float32).max
    expected = {k: np.where(np.abs(v) > largest, np.copysign(np.inf, v), v) for k, v in expected.items()}
    got = prunefuse.score(logits.to(device), NAMES, temperature=temperature, probabilities=probabilities)
    tolerance = slack * eps(logits.dtype) * max(1.0, math.log(logits.shape[1]))
    for name in NAMES:
        utilities = got[name].double().cpu().numpy()
        np.testing.assert_array_equal(np.isnan(utilities), np.isnan(expected[name]), err_msg=name)
        np.testing.assert_allclose(utilities, expected[name], rtol=0, atol=tolerance, err_msg=name)
    raw = prunefuse.score(logits.to(device), RAW, temperature=temperature, probabilities=probabilities)
    for name in RAW:
        np.testing.assert_allclose(
            raw[name].double().cpu().numpy(),
            expected[name],
            rtol=4 * eps(logits.dtype),
            atol=tolerance * max(1.0, temperature),
            err_msg=name,
        )
    stats = prunefuse.statistics(logits.to(device), temperature=temperature, probabilities=probabilities)
    np.testing.assert_array_equal(stats.argmax.cpu(), expected["argmax"])
    for name in ("logsumexp", "p1", "p2"):
        values = getattr(stats, name).double().cpu().numpy()
        scale = eps(logits.dtype) * slack * np.maximum(1.0, np.abs(np.nan_to_num(expected[name], posinf=1)))
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(values - expected[name]) <= scale * max(1.0, math.log(logits.shape[1])))
        wrong &= ~((values == expected[name]) | (np.isnan(values) & np.isnan(expected[name])))
        assert not wrong.any(), (name, values[wrong], expected[name][wrong])


def _probabilities_of(row, temperature):
    """Softmax of one row, all NaN where it has no distribution."""
    if np.isnan(row).any() or not (row > -np.inf).any():
        return np.full(len(row), np.nan)
    top = row.max()
    with np.errstate(invalid="ignore", over="ignore"):
        z = np.where(row == np.inf, 0.0, -np.inf) if top == np.inf else (row - top) / temperature
    e = np.exp(z)
    return e / math.fsum(e)


def _entropy(p):
    """Of one distribution; the largest term by log1p, so that saturated ones keep their precision."""
    if np.isnan(p).any():
        return math.nan
    order = np.sort(p[p > 0])[::-1]
    rest = math.fsum(order[1:])
    first = order[0] * math.log(order[0]) if rest > 0.5 else (1 - rest) * math.log1p(-rest)
    return -(first + math.fsum(order[1:] * np.log(order[1:])))


def of_passes(logits, temperature=1.0):
    x = logits.double().cpu().numpy()
    result = {name: np.full(x.shape[1], np.nan) for name in ENSEMBLE_NAMES}
    for i in range(x.shape[1]):
        p = np.stack([_probabilities_of(row, temperature) for row in x[:, i]])
        if np.isnan(p).any():
            continue
        votes = np.bincount([int(np.argmax(row)) for row in x[:, i]])
        predictive, mean = _entropy(p.mean(0)), math.fsum(_entropy(row) for row in p) / len(p)
        values = (max(predictive - mean, 0.0), predictive, 1 - votes.max() / len(p), mean)
        for name, value in zip(ENSEMBLE_NAMES, values, strict=True):
            result[name][i] = value
    return result


def _streamed(logits, **options):
    scores = prunefuse.EnsembleScores(**options)
    for one in logits:
        scores.update(one)
    return scores.result()


def assert_ensembles(logits, expected=None, device="cpu", slack=8, **options):
    expected = expected or of_passes(logits, options.get("temperature", 1.0))
    tolerance = slack * eps(logits.dtype) * max(1.0, math.log(logits.shape[2]))
    for form in (prunefuse.score_ensemble, _streamed):
        got = form(logits.to(device), **options)
        assert tuple(got) == ENSEMBLE_NAMES
        for name in ENSEMBLE_NAMES:
            assert got[name].dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
            assert got[name].device.type == device
            values = got[name].double().cpu().numpy()
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance, err_msg=name)


def of_k_center(features, b, labeled=(), start=None, weights=None, least=0.0, exclude=()):
    """Picks by the definition: full distances, no cached norms; -1 where rows run out."""
    x = features.double().cpu().numpy()
    centers = list(labeled)
    picks = []
    for _ in range(b):
        if start is not None and not picks:
            pick = start
        else:
            distances = ((x[:, None] - x[centers][None]) ** 2).sum(-1).min(1)
            distances[~np.isfinite(distances) | (distances < least * least)] = -1
            if weights is not None:
                of_rows = np.square(weights.double().cpu().numpy())
                distances = np.where((distances < 0) | np.isnan(of_rows), -1, distances * of_rows)
            distances[[*centers, *exclude]] = -1
            pick = int(distances.argmax()) if distances.max() >= 0 else -1
        picks.append(pick)
        if pick >= 0:
            centers.append(pick)
    return picks


def distances_of_outer(residuals, features, row):
    """Squared distances (N,) of all rows' outer products from that of one, the products formed, in float64."""
    r, h = (rows.double().cpu().numpy() for rows in (residuals, features))
    embeddings = (r[:, :, None] * h[:, None, :]).reshape(len(r), -1)
    return np.square(embeddings - embeddings[row]).sum(1)


def assert_seeding(residuals, features, draws, picks, slack, of_rows=None):
    """Every pick is the one that its draw falls on, but for `slack` of the sum of all distances; exactly so for slack 0."""
    r, h = (rows.double().cpu().numpy() for rows in (residuals, features))
    picks, draws = picks.tolist(), draws.tolist()
    left = np.isfinite(r).all(1) & np.isfinite(h).all(1)
    squares = [np.square(np.where(left[:, None], rows, 0)).sum(1) for rows in (r, h)]
    first = np.ones(len(r)) if of_rows is None else of_rows.cpu().numpy()
    left &= np.isfinite(first) & (first >= 0)
    norms = np.where(left, squares[0] * squares[1], -1)
    nearest = np.full(len(r), np.inf)
    for number, (pick, draw) in enumerate(zip(picks, draws, strict=True)):
        if not left.any():
            assert pick == -1
            continue
        assert pick >= 0
        assert left[pick]
        if number == 0 and of_rows is None:
            assert norms[pick] >= norms.max() * (1 - slack)
            assert slack or pick == norms.argmax()
        else:
            weights = np.where(left, nearest if number else 1.0, 0) * np.where(left, first, 0)
            weights = weights if weights.any() else left.astype(np.float64)
            sums = np.cumsum(weights)
            target, room = draw * sums[-1], slack * sums[-1]
            # In exact arithmetic every target lies below the total; rounding may bring one there.
            assert sums[pick] > target - room or pick == np.flatnonzero(weights)[-1]
            assert sums[pick] - weights[pick] <= target + room
            assert weights[pick] > 0
        left[pick] = False
        with np.errstate(invalid="ignore"):
            nearest = np.fmin(nearest, distances_of_outer(residuals, features, pick))


def of_top_b(utilities, b):
    """Row numbers in order."""
    pairs = [(-u, i) for i, u in enumerate(utilities) if not math.isnan(u)]
    return [i for _, i in sorted(pairs)][:b]


def scatter_pair(generator, sizes, kept_sizes, dtype):
    """A dense tensor, a small one, and sorted kept indices (None for a whole axis)."""
    dense = torch.from_numpy(generator.integers(0, 100, sizes)).to(dtype)
    small = torch.from_numpy(generator.integers(100, 200, kept_sizes)).to(dtype)
    kept = [
        None if n == k else torch.from_numpy(np.sort(generator.permutation(n)[:k]))
        for n, k in zip(sizes, kept_sizes, strict=True)
    ]
    return dense, small, kept


def of_scatter(dense, small, kept):
    result = dense.cpu().clone()
    axes = [torch.arange(n) if k is None else k.cpu() for n, k in zip(dense.shape, kept, strict=True)]
    if not axes:
        return small.cpu().clone()
    result[torch.meshgrid(*axes, indexing="ij")] = small.cpu()
    return result


def of_neighbors(queries, references, k, metric="euclidean"):
    """Distances (float64) and indices of the k nearest references; equals by lower index."""
    q, r = queries.double().cpu().numpy(), references.double().cpu().numpy()
    distances = np.empty((len(q), k))
    indices = np.empty((len(q), k), dtype=np.int64)
    largest = max(np.abs(q).max(initial=0), np.abs(r).max(initial=0)) or 1.0
    q, r = q / largest, r / largest
    if metric == "cosine":
        q, r = (x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-300) for x in (q, r))
    for i, x in enumerate(q):
        squared = ((x - r) ** 2).sum(1)
        if metric == "cosine":
            squared[(~r.any(1)) | (not x.any())] = 2
        # Equal rows have equal distances here as well: sums of the same numbers.
        order = np.argsort(squared, kind="stable")[:k]
        indices[i] = order
        distances[i] = squared[order] / 2 if metric == "cosine" else np.sqrt(squared[order]) * largest
    return distances, indices


def of_dynamics(logits, labels):
    """What rows say of their labels, (6, N) in the operator's order; precise for rows that are sure, right or wrong."""
    rows = np.full((6, len(logits)), np.nan)
    for i, (row, y) in enumerate(zip(logits.double().cpu().numpy(), labels.tolist(), strict=True)):
        if np.isnan(row).any() or not (row > -np.inf).any():
            continue
        top = row.max()
        z = np.where(row == top, 0.0, -np.inf) if top == np.inf else row - top
        e = np.exp(z)
        total = math.fsum(e)
        others = np.delete(e, y)
        rest = math.fsum(others)
        # From the sum of the others where that is the smaller: log1p(rest / own).
        loss = math.log1p(rest / e[y]) if e[y] > 0.5 else math.log(total) - z[y]
        rival = np.delete(row, y).max(initial=-np.inf)
        margin = 0.0 if rival == row[y] else row[y] - rival
        el2n = math.sqrt(math.fsum([rest**2, *others**2])) / total
        rows[:, i] = e[y] / total, rest / total, loss, margin, el2n, float(np.argmax(row) == y)
    return rows


def assert_dynamics(logits, labels, device="cpu"):
    """Every statistic to a few units of its own rounding, however small, down to 1e-30."""
    expected = of_dynamics(logits, labels)
    got = ops.dynamics(logits.to(device), labels.to(device)).cpu()
    assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    got = got.double().numpy()
    # An exponential's argument is rounded: relative to its size.
    span = logits.double()
    span = np.where(span.isfinite(), span, 0)
    size = 1 + np.minimum(span.max(1, initial=0) - span.min(1, initial=0), 700)
    relative = 8 * eps(logits.dtype) * size
    for k, name in enumerate(ops.DYNAMICS):
        with np.errstate(invalid="ignore"):
            wrong = np.abs(got[k] - expected[k]) > relative * np.abs(expected[k]) + 1e-30
        wrong &= got[k] != expected[k]
        overflow = (
            np.abs(expected[k]) > np.finfo(got.dtype if logits.dtype == torch.float64 else np.float32).max
        )
        wrong &= ~(overflow & np.isinf(got[k]))
        assert not wrong.any(), (name, got[k][wrong][:3], expected[k][wrong][:3], np.nonzero(wrong)[0][:3])
        np.testing.assert_array_equal(np.isnan(got[k]), np.isnan(expected[k]), err_msg=name)


def of_divergences(steps, epsilon=1e-8):
    """Divergences (T - 1, N) of successive softmax rows of logits (T, N, C), in float64."""
    p = torch.softmax(steps.double(), 2)
    logs = (p + epsilon).log()
    return (p[1:] * (logs[1:] - logs[:-1])).abs().sum(2)
