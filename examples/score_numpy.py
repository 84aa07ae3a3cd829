"""The scorer and the pickers from NumPy: any classifier's probabilities, any features."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import prunefuse

X, y = load_digits(return_X_y=True)
X = X / 16
members = [LogisticRegression(C=c).fit(X[:50], y[:50]) for c in (0.01, 0.1, 1)]
pool = X[50:]

probabilities = members[-1].predict_proba(pool)
utilities = prunefuse.score(probabilities, ("margin", "entropy"), probabilities=True)  # from one read
for name, values in utilities.items():
    picks, best = prunefuse.top_b(values, 5)
    print(f"{name}: rows {picks}, utilities {best.round(3)}")

passes = np.stack([member.predict_proba(pool) for member in members])  # (S, N, C)
picks, _ = prunefuse.top_b(prunefuse.score_ensemble(passes, "bald", probabilities=True), 5)
print(f"bald: rows {picks}")

picks = prunefuse.k_center_greedy(X, 5, labeled=range(50))  # rows of X, in pick order
print(f"k-center: rows {picks}")
