"""Scores of all samples without a label: a clustering head on any file of embeddings, learned from a third of its rows."""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

import prunefuse
from prunefuse.extrapolation import KNN, Clustering, extrapolate, score_clusters

pixels, labels = load_digits(return_X_y=True)  # the labels are for the last two lines alone
subset = np.random.default_rng(0).permutation(len(pixels))[:600]

with tempfile.TemporaryDirectory() as folder:
    path = Path(
        folder, "embeddings.npy"
    )  # as prunefuse.features(model, data, out=path) writes it; here just pixels
    np.save(path, (pixels / 16).astype(np.float32))
    embeddings = np.load(path, mmap_mode="r")

    # One head depends on where it starts, so the mean over some; dynamic uncertainty of the final pseudo-labels.
    heads = [score_clusters(embeddings, Clustering(clusters=10), subset=subset, seed=s) for s in range(8)]
    scores = np.mean([head.scores["du"] for head in heads], 0)  # NaN where there is none
    result = extrapolate(KNN(k=20), embeddings, scores)

kept, _ = prunefuse.top_b(result.scores, len(pixels) // 2)
print(f"held-out scores: Pearson {result.held_out.pearson:.2f}; keep {sorted(kept.tolist())[:8]} ...")
print(f"pseudo-labels, samples of each: {np.bincount(heads[0].labels)}")
shared = [normalized_mutual_info_score(labels[subset], head.labels) for head in heads]
print(f"normalized mutual information with the classes: {np.mean(shared):.2f}")
