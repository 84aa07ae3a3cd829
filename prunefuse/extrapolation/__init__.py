"""Scores of a whole data set from those of a fraction of it."""

from prunefuse.extrapolation.agreement import Agreement, agreement
from prunefuse.extrapolation.baselines import Direct, RandomScores
from prunefuse.extrapolation.clustering import ClusterHead, Clustering, ClusterScores, score_clusters
from prunefuse.extrapolation.extrapolate import Extrapolation, Trial, Tuned, extrapolate
from prunefuse.extrapolation.gnn import GNN
from prunefuse.extrapolation.interface import Extrapolator
from prunefuse.extrapolation.knn import KNN
from prunefuse.extrapolation.neighbors import nearest_neighbors
from prunefuse.extrapolation.regression import Regression, kernel_ridge, mlp, ridge

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
