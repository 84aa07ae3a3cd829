"""modAL with prunefuse's query strategies: its learner and its loop, our picks."""

import numpy as np
from modAL.models import ActiveLearner
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from prunefuse.adapters.modal import Uncertainty

X, y = load_digits(return_X_y=True)
X, y, X_test, y_test = X[:1200] / 16, y[:1200], X[1200:] / 16, y[1200:]
labeled, pool = np.arange(30), np.arange(30, 1200)

for _ in range(5):
    # A new learner in every round: modAL 0.4.2.1 needs scikit-learn < 1.8 for `learner.teach`.
    learner = ActiveLearner(
        LogisticRegression(), Uncertainty("margin"), X_training=X[labeled], y_training=y[labeled]
    )
    print(f"{len(labeled)} labels: accuracy {learner.score(X_test, y_test):.3f}")
    picks, _ = learner.query(X[pool], n_instances=20)  # indices into what it is given, best first
    labeled, pool = np.append(labeled, pool[picks]), np.delete(pool, picks)
