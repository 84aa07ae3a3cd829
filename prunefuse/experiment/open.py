"""A run that is on the disk, ready to be carried out in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunefuse._options import changed
from prunefuse.experiment import folder
from prunefuse.experiment.execute import Experiment


def open_experiment(path: Path, *, device: str | None = None) -> Experiment:
    """The run of a folder.

    Raises:
        RunFolderError: it is not the folder of a run.
        ConfigError, FileNotFoundError: its data are not here.
    """
    facts = folder.read_facts(path)
    experiment: Any
    if facts.get("kind") == "extrapolate":
        from prunefuse.experiment.extrapolate._run import ExtrapolateRun
        from prunefuse.experiment.extrapolate.config import ExtrapolateConfig

        experiment = ExtrapolateRun(changed(ExtrapolateConfig(), facts["config"]), device=device)
    elif facts.get("kind") == "study":
        from prunefuse.experiment.study._run import StudyRun

        return StudyRun.open(path, device)
    else:
        from prunefuse.experiment.config import RunConfig
        from prunefuse.experiment.run import LoopRun

        experiment = LoopRun(changed(RunConfig(), facts["config"]), device=device)
    experiment.path = path
    opened: Experiment = experiment
    return opened
