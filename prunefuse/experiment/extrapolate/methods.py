"""Extrapolators by name, with the options that are tried, and what they computed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunefuse import ops
from prunefuse.dynamics import PRESETS, Aum, Loss
from prunefuse.extrapolation import (
    GNN,
    KNN,
    Direct,
    Extrapolator,
    RandomScores,
    Regression,
    Tuned,
    mlp,
    ridge,
)
from prunefuse.ops.flops import nearest_neighbors_flops

# What is given to an extrapolator as embeddings.
NEEDS = {
    **dict.fromkeys(("knn", "gnn", "mlp", "ridge"), "embeddings"),
    "direct": "answers",
    "random": "nothing",
}
# Published: k of 10 to 100, temperature 1; see docs/paper.md.
_NEIGHBORS = (10, 20, 50, 100)
_TEMPERATURES = (0.1, 1.0, 10.0)
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
HOLDOUT = 0.1  # part of the subset that the report judges with; options are chosen on a part of the rest


def extrapolator(name: str, scored: int, labels: Tensor, seed: int, work: Work) -> Extrapolator:
    """An extrapolator by name, which chooses its options on a part of the scores that it learns from.

    Args:
        name: One of `NEEDS`.
        scored: Samples with a score.
        labels: (N,) classes of all samples, which the graph network is told.
        seed: Of what is random in it.
        work: What scikit-learn computes is added to it.
    """
    if name == "knn":
        # Of what is left to learn from when the report's part and then the choice's are held out.
        most = int(scored * (1 - HOLDOUT) * 0.8) - 2
        neighbors = tuple(k for k in _NEIGHBORS if k <= most) or (max(1, most),)
        return Tuned(KNN, {"k": neighbors, "temperature": _TEMPERATURES}, seed=seed)
    if name == "gnn":
        return GNN(k=min(10, len(labels) - 1), labels=labels, seed=seed)
    if name == "mlp":
        return _Counted(mlp(seed=seed), work)
    if name == "ridge":
        return Tuned(lambda alpha: _Counted(ridge(alpha), work), {"alpha": _PENALTIES}, seed=seed)
    if name == "direct":
        return Direct()
    return RandomScores(seed)


def answers(score: str, logits: Tensor, labels: Tensor) -> Tensor:
    """What F_s says of samples in one pass, in the direction of the score: (N, 1) for `Direct`.

    AUM's margin and the loss are those of the pass. Every other score is high where the network is wrong or unsure in the
    course of training, and of one pass that is EL2N.
    """
    kind = PRESETS[score]
    statistic = "margin" if isinstance(kind, Aum) else "loss" if isinstance(kind, Loss) else "el2n"
    table = dict(zip(ops.DYNAMICS, ops.dynamics(logits, labels), strict=True))
    column: Tensor = table[statistic][:, None].cpu()
    return column


class Work(TorchDispatchMode):
    """Counts the FLOPs of matrix products and neighbor searches that run in the block, and times the searches.

    Attributes:
        neighbors: FLOPs of searches, by the operator's formula.
        products: FLOPs of matrix products, sparse ones by their entries; scikit-learn's are added by formula.
        searching: Seconds of the searches.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.neighbors, self.products, self.searching = 0.0, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prunefuse.nearest_neighbors.default:
            queries, references = args[:2]
            self.neighbors += nearest_neighbors_flops(len(queries), len(references), queries.shape[1])
            _wait(queries)
            start = time.perf_counter()
            found = func(*args, **(kwargs or {}))
            _wait(queries)
            self.searching += time.perf_counter() - start
            return found
        if func in _PRODUCTS:
            left, right = args[-2:] if func is torch.ops.aten.mm.default else args[1:3]
            entries = left.numel() if left.layout == torch.strided else left._nnz()
            self.products += 2.0 * entries * right.shape[1]
        return func(*args, **(kwargs or {}))


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._sparse_addmm.default)


class _Counted:
    """A regression by scikit-learn whose FLOPs are added to ``work``: 2 per multiply-add, backward as twice the forward."""

    transductive = False

    def __init__(self, regression: Regression, work: Work) -> None:
        self._regression, self._work = regression, work

    def fit(self, embeddings: Any, scores: Any) -> _Counted:
        self._regression.fit(embeddings, scores)
        rows = int((~torch.as_tensor(scores).isnan()).sum())
        self._work.products += self._fitting(rows, embeddings.shape[1])
        return self

    def predict(self, embeddings: Any) -> Any:
        self._work.products += 2.0 * len(embeddings) * self._weights(embeddings.shape[1])
        return self._regression.predict(embeddings)

    def _fitting(self, rows: int, features: int) -> float:
        estimator = self._regression.estimator
        if hasattr(estimator, "coefs_"):
            held = int(estimator.validation_fraction * rows) if estimator.early_stopping else 0
            passes = 3 * (rows - held) + held
            return 2.0 * int(estimator.n_iter_) * passes * self._weights(features)
        # The normal equations: their matrix, and its Cholesky factor.
        return 2.0 * rows * features**2 + features**3 / 3

    def _weights(self, features: int) -> int:
        layers = getattr(self._regression.estimator, "coefs_", None)
        return features if layers is None else sum(layer.size for layer in layers)


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
