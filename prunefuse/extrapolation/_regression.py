"""Baselines that learn scores as a function of the embedding: ridge, kernel ridge, a small MLP, or any of scikit-learn.

Reviewers of the method asked for them; see docs/paper.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunefuse._extras import needed_for
from prunefuse._seeds import derive
from prunefuse.extrapolation._interface import Inductive


class Regression(Inductive):
    """Scores by a regressor of scikit-learn, on embeddings and scores brought to mean 0 and variance 1, on the CPU.

    >>> from sklearn.linear_model import Lasso
    >>> model = prunefuse.extrapolation.Regression(lambda samples: Lasso(0.01))

    Args:
        build: Makes the regressor, not fitted, for a number of scored samples.

    Raises:
        MissingPackageError: From `fit`, where scikit-learn is not installed.
    """

    least = 2

    def __init__(self, build: Callable[[int], Any]) -> None:
        self._build = build

    @property
    def estimator(self) -> Any:
        """The regressor itself, fitted; after `fit`."""
        return self._model.regressor_[-1]

    def _learn(self, embeddings: Tensor, scores: Tensor, largest: float) -> None:
        with needed_for("a regression of scores"):
            from sklearn.compose import TransformedTargetRegressor
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            scaled = make_pipeline(StandardScaler(), self._build(len(embeddings)))
        self._model = TransformedTargetRegressor(scaled, transformer=StandardScaler())
        with warnings.catch_warnings():
            # That all epochs asked for were trained is no reason to warn.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(_as_rows(embeddings), scores.cpu().numpy())

    def _answer(self, embeddings: Tensor, largest: float) -> Tensor:
        return torch.as_tensor(self._model.predict(_as_rows(embeddings)))


def ridge(alpha: float = 1.0) -> Regression:
    """A `Regression`: linear, with an L2 penalty ``alpha``.

    >>> from prunefuse.extrapolation import ridge
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> ridge(1e-6).fit(x, 2 * x[:, 0]).predict(x + 1).round(decimals=2).tolist()
    [2.0, 4.0, 6.0]
    """

    def build(samples: int) -> Any:
        from sklearn.linear_model import Ridge

        return Ridge(alpha)

    return Regression(build)


def kernel_ridge(
    alpha: float = 1.0, gamma: float | None = None, *, components: int = 1000, seed: int = 0
) -> Regression:
    """A `Regression`: ridge with the kernel e^(−gamma |x − y|²), seen from ``components`` of the scored samples (Nyström).

    >>> from prunefuse.extrapolation import kernel_ridge
    >>> model = kernel_ridge(alpha=0.1, components=200)

    Exact kernel ridge regression would take the square of the number of scored samples as memory. This takes ``components``
    times that number. ``gamma`` None is 1 / features.
    """

    def build(samples: int) -> Any:
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        landmarks = min(components, samples)
        state = derive(seed, "kernel ridge") % 2**32
        return make_pipeline(Nystroem(gamma=gamma, n_components=landmarks, random_state=state), Ridge(alpha))

    return Regression(build)


def mlp(hidden: Sequence[int] = (128,), *, epochs: int = 200, seed: int = 0) -> Regression:
    """A `Regression`: a perceptron with layers of ReLU, trained by Adam on the squared error.

    >>> from prunefuse.extrapolation import mlp
    >>> model = mlp(hidden=(64,), epochs=100)

    From 100 scored samples on, a tenth of them is held out. Training then ends when the error of that tenth no longer
    falls, at the best epoch.
    """

    def build(samples: int) -> Any:
        from sklearn.neural_network import MLPRegressor

        return MLPRegressor(
            hidden_layer_sizes=tuple(hidden),
            max_iter=epochs,
            early_stopping=samples >= 100,
            random_state=derive(seed, "mlp") % 2**32,
        )

    return Regression(build)


def _as_rows(embeddings: Tensor) -> Any:
    wide = embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
    return wide.cpu().numpy()
