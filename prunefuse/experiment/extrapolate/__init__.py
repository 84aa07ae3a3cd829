"""A pruned data set from scores of a fraction of it: the whole way, with what it costs."""

from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.extrapolate.kept import read_kept
from prunefuse.experiment.extrapolate.run import resume, run

__all__ = ["ExtrapolateConfig", "read_kept", "resume", "run"]
