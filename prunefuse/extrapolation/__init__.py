"""Scores of a whole data set from those of a fraction of it."""

from prunefuse.extrapolation._agreement import Agreement, agreement
from prunefuse.extrapolation._baselines import Direct, RandomScores
from prunefuse.extrapolation._clustering import ClusterHead, Clustering, ClusterScores, score_clusters
from prunefuse.extrapolation._extrapolate import Extrapolation, Trial, Tuned, extrapolate
from prunefuse.extrapolation._gnn import GNN
from prunefuse.extrapolation._interface import Extrapolator
from prunefuse.extrapolation._knn import KNN
from prunefuse.extrapolation._neighbors import nearest_neighbors
from prunefuse.extrapolation._regression import Regression, kernel_ridge, mlp, ridge

__all__ = [
    "GNN",
    "KNN",
    "Agreement",
    "ClusterHead",
    "ClusterScores",
    "Clustering",
    "Direct",
    "Extrapolation",
    "Extrapolator",
    "RandomScores",
    "Regression",
    "Trial",
    "Tuned",
    "agreement",
    "extrapolate",
    "kernel_ridge",
    "mlp",
    "nearest_neighbors",
    "ridge",
    "score_clusters",
]
