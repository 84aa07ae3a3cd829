"""scikit-activeml with prunefuse's query strategies: cover the pool first, then label what the classifier is unsure of."""

import numpy as np
from skactiveml.classifier import SklearnClassifier
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from prunefuse.adapters.skactiveml import KCenter, Uncertainty

X, y_true = load_digits(return_X_y=True)
X, y_true, X_test, y_test = X[:1200] / 16, y_true[:1200], X[1200:] / 16, y_true[1200:]
y = np.full(len(X), np.nan)  # nan: not labeled
classifier = SklearnClassifier(LogisticRegression(), classes=range(10))

first = KCenter().query(X, y, batch_size=30)
y[first] = y_true[first]
for _ in range(5):
    accuracy = classifier.fit(X, y).score(X_test, y_test)
    print(f"{np.isfinite(y).sum()} labels: accuracy {accuracy:.3f}")
    picks = Uncertainty("margin").query(X, y, classifier, fit_clf=False, batch_size=20)  # rows of X
    y[picks] = y_true[picks]
