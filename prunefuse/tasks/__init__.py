"""What a network learns: the loss, the metrics, and what its outputs say of samples without a label; one file for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse._lazy import lazily

if TYPE_CHECKING:
    from prunefuse.tasks._detection import Detection as Detection
    from prunefuse.tasks._multi_label import MultiLabel as MultiLabel
    from prunefuse.tasks._regression import Regression as Regression
    from prunefuse.tasks._segmentation import Segmentation as Segmentation
    from prunefuse.tasks._single_label import SingleLabel as SingleLabel
    from prunefuse.tasks._task import Loss as Loss
    from prunefuse.tasks._task import Task as Task
    from prunefuse.tasks._tokens import Tokens as Tokens

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "_detection": "Detection",
        "_multi_label": "MultiLabel",
        "_regression": "Regression",
        "_segmentation": "Segmentation",
        "_single_label": "SingleLabel",
        "_task": "Loss Task",
        "_tokens": "Tokens",
    },
)
