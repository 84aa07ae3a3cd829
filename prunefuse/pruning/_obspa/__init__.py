"""Pruning without training: the layers that read channels, the algebra on one of them, and refitting all."""
