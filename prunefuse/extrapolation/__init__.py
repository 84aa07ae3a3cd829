"""Scores of a whole data set from those of a fraction of it."""

from prunefuse.extrapolation.neighbors import nearest_neighbors

__all__ = ["nearest_neighbors"]
