"""small-text with prunefuse's query strategy, on features instead of text so that nothing is downloaded."""

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from small_text import PoolBasedActiveLearner, SklearnClassifierFactory, SklearnDataset

from prunefuse.adapters.small_text import Uncertainty

X, y = load_digits(return_X_y=True)
labels = np.arange(10)
pool = SklearnDataset(csr_matrix(X[:1200] / 16), y[:1200], target_labels=labels)
test = SklearnDataset(csr_matrix(X[1200:] / 16), y[1200:], target_labels=labels)

factory = SklearnClassifierFactory(LogisticRegression(), len(labels))
learner = PoolBasedActiveLearner(factory, Uncertainty("margin"), pool)
learner.initialize_data(np.arange(30), pool.y[:30])
for _ in range(5):
    accuracy = np.mean(learner.classifier.predict(test) == test.y)
    print(f"{len(learner.indices_labeled)} labels: accuracy {accuracy:.3f}")
    picks = learner.query(num_samples=20)  # rows of the data set, best first
    learner.update(pool.y[picks])
