"""Where the report of score extrapolation was; it is `prunefuse.experiment.report`."""

from prunefuse.experiment.report import overview as overview
from prunefuse.experiment.report.extrapolation import METRICS as METRICS
from prunefuse.experiment.report.extrapolation import render as render
from prunefuse.experiment.report.extrapolation import report as report
